"""The processor that numba compiles for."""


def without_avx512() -> dict[str, str]:
    """Returns environment variables with which numba compiles no AVX-512, as for most laptops."""
    from llvmlite import binding

    wide = ("avx512", "avx10", "amx")
    features = {
        name: has and not name.startswith(wide)
        for name, has in binding.get_host_cpu_features().items()
    }
    named = (("+" if has else "-") + name for name, has in features.items())
    return {"NUMBA_CPU_FEATURES": ",".join(named)}
