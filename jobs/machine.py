"""The machine that a measurement or a training ran on."""


def machine(on_gpu: bool) -> str:
    """Name of the GPU in use, or count and name of the processors."""
    from cmasd.io.provenance import provenance

    hardware = provenance()["hardware"]
    if on_gpu:
        return str(hardware["gpus"][0]) if hardware["gpus"] else "a GPU of unknown name"
    return f"{hardware['cpu_count']} cores of {hardware['cpu']}"
