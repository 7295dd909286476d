"""Work of Beam that is the same for each graph, and that tests do once."""

import argparse
import bz2
import copy
import copyreg
import functools
import gettext
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.stager import Stager
from apache_beam.transforms import core, userstate
from apache_beam.typehints.decorators import IOTypeHints
from msgspec import UnsetType

from transforms.taxonomy import Taxonomy, imagenet9


def hasten_beam() -> None:
    """Lets Beam do work once in this process and its forks. The tests make hundreds of graphs.

    * For each graph, Beam asks for the signatures of all methods of its steps a dozen times, which
      takes 0.1 s of CPU.
    * Nearly every step holds the taxonomy. ImageNet-9's is 40 kB of names, which Beam compresses
      and decompresses again and again, in another 0.1 s; here it is pickled as a call.
    * For a job whose workers are other processes, Beam runs `pip freeze`, in 0.5 s. Nothing reads
      what it prints.
    * For each view of its options, of which a job has 200, Beam makes a parser and parses flags.
    * Beam looks for state and timers of each step a dozen times. Steps of one class have the same.
    * Pickle looks through all modules for the one of UNSET, which does not name it, in 5 ms.
    * Beam reads sources to say where a type was given or a function yields, and compresses the same
      steps again and again. Argparse looks for a file of translations for each message.
    """
    make, inspect = PipelineOptions.__init__, core.get_function_args_defaults
    look, specs = userstate.get_dofn_specs, dict[type, Any]()

    @functools.cache
    def of_method(function: Any) -> tuple[list[str], list[Any]]:
        return inspect(function.__get__(object()))

    def of_any(function: Any) -> tuple[list[str], list[Any]]:
        if not hasattr(function, "__func__"):
            return inspect(function)
        return tuple(map(list, of_method(function.__func__)))

    def reduced(taxonomy: Taxonomy) -> tuple[Any, ...]:
        if taxonomy == imagenet9():
            return imagenet9, ()
        return tuple(taxonomy.__reduce_ex__(4))

    @functools.cache
    def parsed(kind: type[PipelineOptions], flags: tuple[str, ...]) -> argparse.Namespace:
        make(options := kind.__new__(kind), [*flags])
        return options._visible_options

    def view(self: PipelineOptions, flags: Sequence[str] | None = None, **values: Any) -> None:
        if flags is None or values:
            return make(self, flags, **values)
        self._flags = flags
        self._visible_options = copy.deepcopy(parsed(type(self), tuple(flags)))
        self._all_options = {**vars(self._visible_options)}
        return None

    def specs_of(step: core.DoFn) -> Any:
        if type(step) not in specs:
            specs[type(step)] = look(step)
        return specs[type(step)]

    IOTypeHints._make_origin = classmethod(lambda *_, **__: [])
    PipelineOptions.__init__ = view
    core._check_fn_use_yield_and_return = lambda _: False
    userstate.get_dofn_specs = specs_of
    core.get_function_args_defaults = of_any
    copyreg.pickle(Taxonomy, reduced)
    copyreg.pickle(UnsetType, lambda _: (UnsetType, ()))
    for name in ("compress", "decompress"):
        setattr(bz2, name, functools.lru_cache(99)(getattr(bz2, name)))
    gettext.find = functools.cache(gettext.find)
    Stager._create_stage_submission_env_dependencies = staticmethod(lambda _: [])
