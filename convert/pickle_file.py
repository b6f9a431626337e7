"""Reads adapter_model.bin, a pickle, as safely as that can be done; only for callers who allow it.

A pickle is a program. Three walls stand before it: only torch's zip form is accepted, whatever it
would call besides rebuilding tensors is refused by name before anything runs, and then torch's own
restricted loader reads it (`weights_only`, of a torch whose known holes are closed).
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.errors import ConvertError, FileFormatError, UnsupportedAdapterError
from alora_gguf.files import describe_foreign

from .input_file import InputFile
from .safetensors_file import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_TORCH: Final = (2, 6)  # before, `weights_only` could be made to run code: CVE-2025-32434
_SAVE_AGAIN: Final = (
    "load the adapter with PEFT and save it again: save_pretrained(..., safe_serialization=True) "
    "writes adapter_model.safetensors"
)
# what torch.save() writes for a dictionary of tensors, storages aside
_CALLS: Final = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
    }
)
_STORAGE: Final = re.compile(r"torch [A-Z][A-Za-z0-9]*Storage")
# other opcodes that fetch something to call; torch.save() has no use for them
_FOREIGN_OPCODES: Final = frozenset({"EXT1", "EXT2", "EXT4", "INST", "OBJ", "STACK_GLOBAL"})
_DTYPES: Final = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class PickleFile:
    """The tensors of a file that torch.save() wrote; all of them are in memory until close().

    Raises FileFormatError for a file that is damaged or another one, UnsupportedAdapterError for a
    pickle that would do more than rebuild a dictionary of tensors, ConvertError without a torch of
    2.6 or newer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self._values: dict[str, torch.Tensor] = {}
        self._file = InputFile(path)
        try:
            self._check_start()
            self._check_calls(self._pickle())
            self._take(self._load())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PickleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and forgets the tensors. May be called again."""
        self._values.clear()
        self._file.close()

    def read(self, name: str) -> NDArray[np.floating]:
        """A tensor's values, without loss: F32, F16 and BF16 as float32, F64 as float64.

        Raises UnsupportedAdapterError for another dtype.
        """
        info = self.tensors[name]
        if info.dtype not in _DTYPES.values():
            raise UnsupportedAdapterError(
                f"{self.path}: tensor '{name}' has the dtype {info.dtype}, expected F32, F16, "
                "BF16 or F64; save the adapter again in one of them"
            )
        value = self._values[name].detach()
        wide: NDArray[np.floating] = (value if info.dtype == "F64" else value.float()).numpy()
        return wide

    def sha256(self) -> str:
        """The file's SHA-256, in hexadecimal. May run in another thread beside read()."""
        return self._file.sha256()

    def _check_start(self) -> None:
        start = self._file.read_at(0, 64)
        if not start:
            raise self._file.fail("the file is empty; download or save it again")
        if start.startswith(b"PK\x03\x04"):
            return
        known = describe_foreign(start)
        if known == "a safetensors file":
            known += ": rename it to adapter_model.safetensors"
        if known:
            raise self._file.fail(f"is not a pickle of torch but {known}")
        raise self._file.fail(
            f"is not in the form that torch has saved in since 1.6: it starts with {start[:4]!r}; "
            f"older pickles cannot be checked; if you know and trust who made it, {_SAVE_AGAIN}"
        )

    def _pickle(self) -> bytes:
        """The program in the archive, which must not be compressed, so that sizes are true."""
        try:
            with zipfile.ZipFile(self._file.handle) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise self._file.fail("is compressed, which torch's own files are not")
                found = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
                if len(found) != 1:
                    raise self._file.fail(
                        f"is a zip archive with {len(found)} data.pkl, expected one, as torch "
                        "saves it"
                    )
                return archive.read(found[0])
        except FileFormatError:
            raise
        except Exception as error:  # zipfile's parser raises whatever damage leads it to
            raise self._damaged(error) from None

    def _check_calls(self, program: bytes) -> None:
        """Reads the pickle's opcodes, running none, for what it would import and call."""
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name in _FOREIGN_OPCODES:
                    raise self._refuse(f"uses the pickle opcode {opcode.name}")
                if opcode.name == "GLOBAL" and not (
                    argument in _CALLS or _STORAGE.fullmatch(str(argument))
                ):
                    raise self._refuse(f"refers to {ascii(argument)[1:-1].replace(' ', '.')}")
        except UnsupportedAdapterError:
            raise
        except Exception as error:  # as above
            raise self._damaged(error) from None

    def _load(self) -> Any:
        torch = self._torch()
        try:
            self._file.handle.seek(0)
            return torch.load(self._file.handle, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise self._refuse("is refused by torch's restricted loader") from error
        except Exception as error:  # torch raises whatever damage leads it to
            raise self._damaged(error) from error

    def _torch(self) -> Any:
        need = f"{self.path}: reading a pickle needs PyTorch {_TORCH[0]}.{_TORCH[1]} or newer, "
        try:
            import torch
        except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
            raise ConvertError(
                f"{need}which cannot be imported ({error}): `pip install torch`, or {_SAVE_AGAIN}"
            ) from error
        found = re.match(r"(\d+)\.(\d+)", torch.__version__)
        if not found or (int(found[1]), int(found[2])) < _TORCH:
            raise ConvertError(
                f"{need}but this is {torch.__version__}, whose restricted loader can be made to "
                f"run code (CVE-2025-32434): `pip install --upgrade torch`, or {_SAVE_AGAIN}"
            )
        return torch

    def _take(self, content: Any) -> None:
        """Fills `tensors` from what was loaded, if it is a dictionary of tensors."""
        import torch

        if not isinstance(content, dict):
            raise self._refuse(f"holds {type(content).__name__}, not a dictionary of tensors")
        for name, value in content.items():
            if not isinstance(name, str) or not name.isprintable():
                raise self._refuse(f"holds an entry named {ascii(name)[:80]}")
            if not isinstance(value, torch.Tensor):
                raise self._refuse(f"holds '{name}', which is not a tensor")
            size = value.numel() * value.element_size()
            if size > value.untyped_storage().nbytes():  # rows that share their memory
                raise self._refuse(f"holds '{name}' of {size} bytes in fewer")
            dtype = str(value.dtype).removeprefix("torch.")
            shape = tuple(value.shape)
            self.tensors[name] = StoredTensor(name, _DTYPES.get(dtype, dtype), shape, 0, size)
            self._values[name] = value

    def _damaged(self, error: Exception) -> FileFormatError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return self._file.fail(f"is truncated or damaged ({reason}); download or save it again")

    def _refuse(self, problem: str) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(
            f"{self.path}: {problem}, but weights need no more than a dictionary of tensors; a "
            "pickle can run any code when it is loaded, so this one is not. If you know and trust "
            f"who made it, {_SAVE_AGAIN}"
        )
