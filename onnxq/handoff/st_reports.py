"""What ST Edge AI's tool reports, read from its files.

``network_generate_report.txt``, ``network_c_info.json`` and ``network_validate_report.txt`` are
read by what public reports of Core 2.2 to 4.0 show of them; ST's tool was not run, and ST documents
none of the three as a format.
What cannot be told for certain is an error, never a guess.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from onnxq.artifacts import (
    ST_METRICS,
    CompiledEpoch,
    CompiledPool,
    GenerateReport,
    InfoReport,
    OutputMetrics,
    ValidateReport,
)
from onnxq.errors import UsageError
from onnxq.handoff.st_values import models_in, strings_in, values_in

__all__ = ["StReport", "parse_generate", "parse_info", "parse_validate", "read_report"]

StReport: TypeAlias = GenerateReport | InfoReport | ValidateReport
_METRICS = ("acc", *ST_METRICS)
_SCHEMA = "2."
_REPORT_IT = "report it together with the version of the tool"
_UNIT_BYTES = {
    "b": 1,
    "kb": 1024,
    "kib": 1024,
    "mb": 1024**2,
    "mib": 1024**2,
    "gb": 1024**3,
    "gib": 1024**3,
}

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_AMOUNT = r"(\d[\d,]*(?:\.\d+)?)\s*([kKMG]?i?B)"
_VERSION = re.compile(r"ST\s*Edge\s*AI\s*Core\D{0,10}?(\d+(?:\.\d+)+(?:-[\w.]+)?)", re.I)
_FORMAT = re.compile(r"^\s*model_fmt\s*:\s*(.+?)\s*$", re.M)
_PROFILE = re.compile(r"--st-neural-art[\s=]+([^\s'\"]+)")
_EPOCH = re.compile(
    r"^\s*epoch\s*#?(\d+)\s*[:|]?\s*-*\s*(HW|SW|EC)\b\s*-*\s*(?:\(\s*(.*?)\s*\))?", re.I | re.M
)
_TOTAL = re.compile(
    r"number of epochs\s*:?\s*(\d+)(?:\s*,?\s*of which\s+(\d+)\s+(?:are\s+)?"
    r"(?:implemented\s+)?in\s+software)?",
    re.I,
)
_POOL = re.compile(rf"^\s*(\w+)\s*(?:\[[^\]]*\])?\s*:\s*{_AMOUNT}\s*/\s*{_AMOUNT}", re.M)
_TOTALS = re.compile(
    rf"^\s*Total\s*:\s*{_AMOUNT}\s*--\s*weights\s*:\s*{_AMOUNT}\s*activations\s*:\s*{_AMOUNT}",
    re.I | re.M,
)
_MACC = re.compile(r"^\s*macc\s*:\s*(\d[\d,]*)\s*$", re.I | re.M)
_RANGE = re.compile(r"^\s*\w+\s*\[\s*0x[^\]]*\].*$", re.M)
_PAIR = re.compile(rf"\b({'|'.join(_METRICS)})\s*=\s*({_NUMBER}%?|n\.a\.|nan|inf)", re.I)
_HEAD = re.compile(r"^\s*output\s+((?:\w+\s+)*?cos)\b", re.I | re.M)
_ROW = re.compile(
    rf"^\s*((?:[\w-]+\s+)*#\d+)\s+((?:(?:{_NUMBER}%?|n\.a\.|nan|inf)(?:\s+|$))+)", re.I
)


def read_report(path: Path) -> StReport:
    """The report at ``path``, of whichever of the three kinds it is.

    Raises UsageError for a file that is missing, cut off or no such report.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="strict")
    except (OSError, UnicodeDecodeError) as fault:
        do = "check the path, or let the tool write it again"
        raise UsageError(f"cannot be read: {fault}", where=str(path), do=do) from fault
    if text.lstrip().startswith("{"):
        return parse_info(text, path.name)
    if _PAIR.search(text) or _HEAD.search(text):
        return parse_validate(text, path.name)
    return parse_generate(text, path.name)


def parse_generate(text: str, file: str) -> GenerateReport:
    """Epochs, pools and version in the text of ``network_generate_report.txt``.

    Raises UsageError if it names no pool or no epoch, a pool in another form, or not as many
    epochs as it counts.
    """
    pools = tuple(
        CompiledPool(
            pool=name,
            used_bytes=_bytes_of(used, used_unit),
            size_bytes=_bytes_of(size, size_unit),
        )
        for name, used, used_unit, size, size_unit in _POOL.findall(text)
        if name.casefold() != "total"
    )
    epochs = tuple(
        CompiledEpoch(
            number=int(number),
            runs="software" if kind.upper() == "SW" else "hardware",
            operation=operation,
        )
        for number, kind, operation in _EPOCH.findall(text)
    )
    if not pools or not epochs:
        missing = " and ".join(
            what for what, found in (("memory pools", pools), ("epochs", epochs)) if not found
        )
        raise UsageError(
            f"is no network_generate_report.txt of the Neural-ART: it lists no {missing}",
            where=file,
            do="give the report that `stedgeai generate --st-neural-art …` writes",
        )
    for line in _RANGE.findall(text):
        if not _POOL.match(line):
            raise UsageError(
                f"the line `{line.strip()}` of a pool cannot be read",
                where=file,
                do=_REPORT_IT,
            )
    _refuse_miscounted(text, epochs, file)
    totals = _TOTALS.search(text)
    return GenerateReport(
        file=file,
        tool_version=_first_in(text, _VERSION),
        profile=_first_in(text, _PROFILE),
        model_format=_first_in(text, _FORMAT),
        epochs=epochs,
        pools=pools,
        models=models_in(text),
        values=values_in(text),
        weights_bytes=_bytes_of(*totals.group(3, 4)) if totals else None,
        activations_bytes=_bytes_of(*totals.group(5, 6)) if totals else None,
        macc=int(macc.group(1).replace(",", "")) if (macc := _MACC.search(text)) else None,
    )


def parse_info(text: str, file: str) -> InfoReport:
    """Buffers by pool, epochs and cycles in the text of ``network_c_info.json``.

    Raises UsageError for another schema than 2, or where buffers have neither size nor pool.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as fault:
        raise UsageError(f"is no JSON: {fault}", where=file, do="copy it again") from fault
    schema = str(data.get("json_schema_version", ""))
    if not schema.startswith(_SCHEMA):
        raise UsageError(
            f"has the schema version `{schema}`; 2.0 is read",
            where=file,
            do="give the network_c_info.json of ST Edge AI Core 2.0 to 4.0",
        )
    buffers = _entries(data, "buffers", file)
    used: dict[str, int] = {}
    for buffer in buffers:
        pool = _first_of(buffer, ("mempool", "memory_pool", "mpool", "pool"), file)
        size = _first_of(buffer, ("size_bytes", "size"), file)
        used[str(pool)] = used.get(str(pool), 0) + _whole(size, file)
    return InfoReport(
        file=file,
        schema_version=schema,
        tool_version=_first_in(text, _VERSION) or _tool_version(data),
        epochs=tuple(
            CompiledEpoch(
                number=number,
                runs=_runs(_first_of(epoch, ("mapping", "type", "kind", "hw_sw"), file), file),
                operation=str(epoch.get("description") or epoch.get("name") or ""),
                cycles=_cycles_of(epoch, file),
            )
            for number, epoch in enumerate(_entries(data, "epochs", file))
        ),
        pools=tuple(CompiledPool(pool=pool, used_bytes=size) for pool, size in used.items()),
        buffers=len(buffers),
        models=models_in("\n".join(strings_in(data))),
    )


def parse_validate(text: str, file: str) -> ValidateReport:
    """Metrics of every output in the text of ``network_validate_report.txt``: of its summary table,
    else of its ``rmse=… mae=…`` lines. Raises UsageError if it holds neither."""
    outputs = tuple(_rows_of_table(text)) or tuple(_rows_of_pairs(text))
    if not outputs:
        raise UsageError(
            "is no network_validate_report.txt: it holds no rmse, mae, l2r, nse or cos",
            where=file,
            do="give the report that `stedgeai validate` writes",
        )
    return ValidateReport(
        file=file,
        tool_version=_first_in(text, _VERSION),
        outputs=outputs,
        models=models_in(text),
        values=values_in(text),
    )


# --- text ---------------------------------------------------------------------------------------


def _first_in(text: str, what: re.Pattern[str]) -> str:
    found = what.search(text)
    return found.group(1) if found else ""


def _bytes_of(number: str, unit: str) -> int:
    """ST's kB and MB are those of 1,024 bytes."""
    return round(float(number.replace(",", "")) * _UNIT_BYTES[unit.casefold()])


def _refuse_miscounted(text: str, epochs: Iterable[CompiledEpoch], file: str) -> None:
    total = _TOTAL.search(text)
    if total is None:
        return
    listed = [epoch.runs for epoch in epochs]
    counts = (int(total.group(1)), int(total.group(2) or 0))
    found = (len(listed), listed.count("software"))
    if found[0] != counts[0] or (total.group(2) is not None and found[1] != counts[1]):
        raise UsageError(
            f"counts {counts[0]} epochs ({counts[1]} in software) and lists {found[0]} "
            f"({found[1]} in software)",
            where=file,
            do="give the whole report, as the tool wrote it",
        )


def _rows_of_table(text: str) -> Iterable[OutputMetrics]:
    head = _HEAD.search(text)
    if head is None:
        return
    columns = head.group(1).casefold().split()
    for line in text[head.end() :].splitlines():
        row = _ROW.match(line)
        if row is not None:
            values = dict(zip(columns, row.group(2).split(), strict=False))
            yield _metrics(row.group(1), values)


def _rows_of_pairs(text: str) -> Iterable[OutputMetrics]:
    label = ""
    for line in text.splitlines():
        pairs = _PAIR.findall(line)
        named = re.search(r"((?:X-cross|\w+)\s+#\d+|report\s+#\d+)", line)
        label = named.group(1) if named else label
        if len(pairs) > 1:
            yield _metrics(label or "output", {key.casefold(): value for key, value in pairs})


def _metrics(output: str, values: Mapping[str, str]) -> OutputMetrics:
    known = {name: _number(values[name]) for name in _METRICS if name in values}
    return OutputMetrics(output=output, **known)


def _number(text: str) -> float | None:
    if text.casefold() == "n.a.":
        return None
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


# --- JSON ---------------------------------------------------------------------------------------


def _entries(data: Mapping[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    """The list of objects at ``key``, at the top or in the only graph."""
    graphs = data.get("graphs")
    held = data.get(key)
    if held is None and isinstance(graphs, list) and len(graphs) == 1:
        held = graphs[0].get(key) if isinstance(graphs[0], dict) else None
    if not isinstance(held, list) or not all(isinstance(entry, dict) for entry in held):
        raise UsageError(
            f"holds no list of `{key}`; it has {', '.join(sorted(data)) or 'nothing'}",
            where=file,
            do=_REPORT_IT,
        )
    return held


def _first_of(entry: Mapping[str, Any], keys: tuple[str, ...], file: str) -> Any:
    for key in keys:
        if key in entry:
            return entry[key]
    raise UsageError(
        f"an entry has none of {', '.join(keys)}; it has {', '.join(sorted(entry))}",
        where=file,
        do=_REPORT_IT,
    )


def _runs(word: object, file: str) -> Literal["hardware", "software"]:
    match str(word).upper():
        case "HW" | "HARDWARE" | "NPU" | "EC":
            return "hardware"
        case "SW" | "SOFTWARE" | "CPU":
            return "software"
    raise UsageError(
        f"an epoch runs on `{word}`", where=file, do=f"HW and SW are known: {_REPORT_IT}"
    )


def _cycles_of(epoch: Mapping[str, Any], file: str) -> int | None:
    """Cycles of the epoch, or of all its nodes; None where nothing is said."""
    if "cycles" in epoch:
        return _whole(epoch["cycles"], file)
    nodes = epoch.get("nodes")
    listed = nodes if isinstance(nodes, list) else []
    counted = [n["cycles"] for n in listed if isinstance(n, dict) and "cycles" in n]
    return sum(_whole(count, file) for count in counted) if counted else None


def _whole(value: object, file: str) -> int:
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    what = f"`{value}` stands where a whole number is due"
    raise UsageError(what, where=file, do=_REPORT_IT)


def _tool_version(data: Mapping[str, Any]) -> str:
    """The version of the tool whose name says that it is ST Edge AI Core; empty if none does."""
    environment = data.get("environment", {})
    tools = environment.get("tools", []) if isinstance(environment, dict) else []
    for tool in tools:
        if isinstance(tool, dict) and "edge ai core" in str(tool.get("name", "")).casefold():
            return str(tool.get("version", ""))
    return ""
