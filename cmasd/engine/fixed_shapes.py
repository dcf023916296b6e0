"""`engine.fixed_shapes`: outputs that are the same to the last bit at any batch size, or none.

Where two logits nearly tie, a product over other rows may round to the other one. The C kernels sum each row alone,
whatever is beside it; stock operations of torch do not, nor does a GPU. No choice of the engine has to be turned off
for it: with exact verification drafts decide only how many tokens an iteration brings.
"""

from cmasd.errors import ConfigError
from cmasd.runner import Runner


def check_alone(verifier: Runner, name: str) -> None:
    """Raises `ConfigError` where a row's numbers may depend on the rows beside it."""
    if not verifier.rows_alone:
        dtype = str(verifier.dtype).removeprefix("torch.")
        raise ConfigError(
            f"engine.fixed_shapes: a row's numbers depend on the rows beside it, got {name} on {verifier.device.type} "
            f"in {dtype}; expected a model that runs whole in the C kernels, on a Linux CPU with a compiler. "
            "Use engine.fixed_shapes=false."
        )
