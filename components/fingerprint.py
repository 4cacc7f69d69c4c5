"""Component of the stage `fingerprint`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("data"))
def fingerprint(config: dict, root: str, code_version: str) -> str:  # type: ignore[type-arg]  # KFP knows no dict[...]
    """Digest the raw data set; returns the digest that later stages take as a parameter."""
    from medssl.config import DataConfig
    from medssl.stages import data
    from medssl.store import Store

    settings = DataConfig.model_validate(config)
    made = data.fingerprint(Store.from_environment(), settings, root=root, code_version=code_version)
    return str(made.metadata["digest"])
