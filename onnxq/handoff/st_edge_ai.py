"""What ST Edge AI is given: the command lines for one model, and the files that they name.

ST's tool was not run. Commands and files follow its usage text and what ST's applications ship
(ST, "Getting started - How to evaluate a model on STM32N6"; user_neuralart.json and stm32n6.mpool
of the STM32N6 applications); no difference of these options between Core 2.0 and 4.0 is known.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from onnxq.handoff.contract import Contract, InputOutput
from onnxq.target import MemoryPool, Target

__all__ = [
    "COMMANDS_FILE",
    "NEURAL_ART_FILE",
    "command_lines",
    "is_for_st",
    "st_commands",
    "st_files",
]

NEURAL_ART_FILE, COMMANDS_FILE = "user_neuralart.json", "commands.sh"
_PROFILE, _STRICT = "onnxq", "onnxq-strict"
_OPTIONS = (
    "-O3 --all-buffers-info --mvei --cache-maintenance --Oalt-sched --native-float "
    "--enable-virtual-mem-pools --Omax-ca-pipe 4 --Ocache-opt --Os --enable-epoch-controller"
)
_NO_SOFTWARE = "--disable-sw-fallback"
_INPUTS, _OUTPUTS = "validate_inputs.npz", "validate_outputs.npz"
_SERIAL = "serial:921600"
# throughput, latency, clock of the NPU over the memory's: as in ST's stm32n6.mpool, second hand
_SPEED = {
    "AXISRAM1": ("MID", "MID", 2.5),
    "AXISRAM2": ("MID", "MID", 2.5),
    "AXISRAM3": ("HIGH", "LOW", 1.25),
    "AXISRAM4": ("HIGH", "LOW", 1.25),
    "AXISRAM5": ("HIGH", "LOW", 1.25),
    "AXISRAM6": ("HIGH", "LOW", 1.25),
    "xSPI1": ("MID", "HIGH", 5.0),
    "xSPI2": ("MID", "HIGH", 6.0),
}


def is_for_st(target: Target) -> bool:
    """Whether the target's commands are those of ST's tool."""
    return any(command.startswith("stedgeai") for command in target.commands)


def st_files(contract: Contract, target: Target) -> dict[str, str]:
    """Texts, by file name, that go beside the model: the profile, its memory pools, the commands.

    Empty for a target of another tool. Every path in them is meant from the bundle's folder.
    """
    if not is_for_st(target):
        return {}
    pools = f"{PurePath(target.name).stem.partition('@')[0]}.mpool"
    return {
        NEURAL_ART_FILE: _as_json(_profiles(pools)),
        pools: _as_json(_mpool(target)),
        COMMANDS_FILE: _script(contract, target),
    }


def st_commands(contract: Contract, target: Target) -> tuple[str, ...]:
    """``analyze``, ``generate`` and ``validate`` for the contract's model, in this order.

    Inputs and outputs are integers on the device where the contract has a form for every one of
    them, and keep the file's layout (``chfirst``): the device then takes and gives what
    contract.json says.
    """
    model = shlex.quote(contract.model)
    common = f"-m {model} --target stm32n6 --st-neural-art {_PROFILE}@{NEURAL_ART_FILE}"
    options = " ".join(
        (*_options_of("input", contract.inputs), *_options_of("output", contract.outputs))
    )
    full = f"{common} {options}".rstrip()
    return (
        f"stedgeai analyze {common}",
        f"stedgeai generate {full} --name network",
        f"stedgeai validate {full} --mode target -d {_SERIAL} -vi {_INPUTS} -vo {_OUTPUTS}",
    )


def command_lines(contract: Contract, target: Target) -> list[str]:
    """Lines of Markdown for README.md: the commands, and what they were made from."""
    wanted = target.tool_version or "the version of the profile"
    return [
        "```sh",
        *st_commands(contract, target),
        "onnxq compare-st . st_ai_output/network_generate_report.txt",
        "```",
        "",
        f"- Written for {wanted}; the same lines are in `{COMMANDS_FILE}`. ST's tool was not run.",
        f"- `{NEURAL_ART_FILE}` and the `.mpool` it names follow what ST's applications ship. "
        "Where they differ from ST's files for your board, ST's are right; the pools must agree "
        "with the linker script.",
        f"- The profile `{_STRICT}` makes every software epoch a compile error (`{_NO_SOFTWARE}`).",
        f"- `{_INPUTS}` holds the file's own floats; that `validate` quantizes them for integer "
        "inputs, and which array names it expects, was not tried.",
        *[f"- {note}" for note in _io_notes(contract)],
    ]


# --- options ------------------------------------------------------------------------------------


def _options_of(side: str, values: Sequence[InputOutput]) -> list[str]:
    options = []
    type_ = _device_type(values)
    if type_ is not None:
        options.append(f"--{side}-data-type {type_}")
    if any(len(value.shape) > 2 for value in values):
        options.append(f"--{side}s-ch-position chfirst")
    return options


def _device_type(values: Sequence[InputOutput]) -> str | None:
    """The integer type that all of ``values`` can have on the device; None if one has no such."""
    types = {value.quantization.type.value if value.quantization else None for value in values}
    return next(iter(types)) if len(types) == 1 else None


def _io_notes(contract: Contract) -> list[str]:
    notes = []
    for side, values in (("input", contract.inputs), ("output", contract.outputs)):
        floats = [value.name for value in values if value.quantization is None]
        if _device_type(values) is None:
            why = ", ".join(f"`{name}`" for name in floats) or "their types differ"
            notes.append(
                f"The {side}s keep the file's types on the device: no integer form for all of them "
                f"({why})."
            )
    pictures = [v for v in contract.inputs if v.quantization and v.quantization.byte_image]
    if pictures:
        notes.append(
            "A camera that gives bytes, channels last: `--input-data-type uint8 "
            "--inputs-ch-position chlast` instead, which adds a conversion and a transposition; "
            "contract.json says what a byte stands for. Give `validate` the same options."
        )
    return notes


# --- files --------------------------------------------------------------------------------------


def _profiles(pools: str) -> dict[str, object]:
    def profile(options: str) -> dict[str, str]:
        return {"memory_pool": f"./{pools}", "options": options}

    return {
        "Globals": {},
        "Profiles": {
            _PROFILE: profile(_OPTIONS),
            _STRICT: profile(f"{_OPTIONS} {_NO_SOFTWARE}"),
        },
    }


def _mpool(target: Target) -> dict[str, object]:
    """The pools that the network may use; the application's are left to it."""
    pools = [_pool(pool) for pool in target.memory if pool.use != "application"]
    return {"memory": {"mem_file_prefix": "atonbuf", "mempools": pools}}


def _pool(pool: MemoryPool) -> dict[str, object]:
    throughput, latency, ratio = _SPEED.get(pool.bank, ("MID", "MID", 1.0))
    properties: dict[str, object] = {
        "rights": "ACC_READ" if pool.use == "weights" else "ACC_WRITE",
        "throughput": throughput,
        "latency": latency,
        "byteWidth": pool.byte_width,
        "freqRatio": ratio,
    }
    if pool.use in ("weights", "spill"):
        properties["cacheable"] = "CACHEABLE_ON"
    if pool.use == "weights":
        properties["constants_preferred"] = "true"
    return {
        "fname": pool.bank,
        "name": pool.name,
        "fformat": "FORMAT_RAW",
        "prop": properties,
        "offset": {"value": f"0x{pool.address:08X}", "magnitude": "BYTES"},
        "size": {"value": str(pool.size_bytes), "magnitude": "BYTES"},
    }


def _script(contract: Contract, target: Target) -> str:
    known = [
        f"#   Core {entry.version}: {' '.join(entry.says.split())}" for entry in target.versions
    ]
    analyze, generate, validate = st_commands(contract, target)
    lines = [
        "#!/bin/sh",
        f"# Written by onnxq for {target.tool_version or target.title}; ST's tool was not run.",
        "# The options are the same for every version of the profile, as far as is known:",
        *known,
        "# stedgeai writes its reports to st_ai_output/ unless told otherwise.",
        "set -eu",
        'cd "$(dirname "$0")"',
        analyze,
        generate,
        "# does the compiler's report agree with what was planned? (exit code 1: it does not)",
        "# onnxq compare-st . st_ai_output/network_generate_report.txt",
        "# with the board connected and the network flashed:",
        f"# {validate}",
        "# onnxq compare-st . st_ai_output/network_validate_report.txt",
    ]
    return "\n".join(lines) + "\n"


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
