"""Measures BG-Gap after each validation of a training with Lightning.

trainer = lightning.Trainer(callbacks=[BackgroundGap("out")])
"""

import lightning

import in9


class BackgroundGap(lightning.Callback):
    """Logs BG-Gap, and the accuracy on each variant, of the module that is trained."""

    def __init__(self, dataset, every=1):
        self.dataset, self.every = dataset, every

    def on_validation_epoch_end(self, trainer, module):
        """Evaluates a copy of the module, on one process of a distributed training."""
        if trainer.sanity_checking or trainer.current_epoch % self.every or trainer.global_rank:
            return
        result = in9.evaluate_model(self.dataset, module, name=type(module).__name__)
        figures = {f"in9/{name}": value for name, (value, _, _) in result.accuracy.items()}
        module.log_dict({**figures, "in9/bg_gap": result.bg_gap[0]}, rank_zero_only=True)
