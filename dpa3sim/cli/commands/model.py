"""List, inspect and download DPA3 models."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from dpa3sim.checkpoints import ModelFile

EXAMPLES = """\
dpa3sim model list                                  # the public DPA3 models
dpa3sim model info my.pt --head Omat24              # the content of a file, and its traps
dpa3sim model pull dpa3-mptrj                       # download it; then use --model dpa3-mptrj
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim model``."""
    parser.usage = "dpa3sim model list [--json] | info [FILE|NAME] [--head H] [--json] | pull NAME"
    parser.add_argument("action", choices=("list", "info", "pull"), help="action")
    parser.add_argument("name", nargs="?", help="model file or registry name [embedded model]")
    parser.add_argument("--head", help="info: head of a multi-task checkpoint")
    parser.add_argument("--json", action="store_true", help="list, info: print JSON")
    parser.add_argument("--sha256", metavar="HEX", help="pull: checksum for the verification")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="pull: accept a model without a published checksum",
    )


def run(args: argparse.Namespace) -> int:
    """List, inspect or download."""
    return {"list": _list, "info": _info, "pull": _pull}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from dpa3sim.checkpoints.registry import DEFAULT_MODEL, REGISTRY, describe, is_installed

    if args.json:
        print(json.dumps(describe(), indent=2, ensure_ascii=False))
        return 0
    for entry in REGISTRY:
        state = "embedded" if entry.embedded else "pulled" if is_installed(entry) else "-"
        default = " (default)" if entry.name == DEFAULT_MODEL else ""
        size = f"{entry.size / 1e6:.0f} MB" if entry.size else "? MB"
        print(f"{entry.name + default:<24}{state:<10}{size:>6}  {entry.summary}")
        checksum = "checksum known" if entry.sha256 else "no checksum published"
        print(f"{'':<42}{entry.licence}; {checksum}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from dpa3sim.checkpoints.deepmd import HeadRequiredError
    from dpa3sim.checkpoints.registry import load_model

    shown = None
    try:
        model = load_model(args.name, args.head)
    except HeadRequiredError as several:
        shown = several.heads[0]
        model = load_model(args.name, shown)
    facts = model_info(model)
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    for key, value in facts.items():
        if isinstance(value, list):
            if value:
                print(f"{key}:")
            for line in value:
                print(f"  - {line}")
        else:
            print(f"{key + ':':<18}{value}")
    if shown:
        print(f"(the file has several heads; this is {shown}, --head selects another)")
    return 0


def model_info(model: ModelFile) -> dict[str, Any]:
    """The facts that ``dpa3sim model info`` shows, JSON-ready."""
    descriptor, fitting = model.config.descriptor, model.config.fitting
    switch = "exponential" if descriptor.use_exp_switch else "polynomial"
    selection = (
        f"dynamic, divisors {descriptor.edge_divisor:g}/{descriptor.angle_divisor:g}"
        if descriptor.use_dynamic_sel
        else "static"
    )
    extra = [
        f"{count} {name}"
        for name, count in (("fparam", fitting.numb_fparam), ("aparam", fitting.numb_aparam))
        if count
    ]
    if descriptor.add_chg_spin_ebd:
        default = descriptor.default_chg_spin
        extra.append("charge and spin" + (f" (default {default})" if default else ""))
    neurons = " -> ".join(map(str, (model.config.input_dim, *fitting.neuron, 1)))
    return {
        "name": model.name,
        "file": str(model.path),
        "format": model.source_format,
        "sha256": model.sha256,
        "origin": ", ".join(f"{k} {v}" for k, v in model.origin.items()) or "-",
        "architecture": f"DPA3, {descriptor.nlayers} layers, node/edge/angle widths "
        f"{descriptor.n_dim}/{descriptor.e_dim}/{descriptor.a_dim}, {descriptor.update_style}, "
        f"{'sequential' if descriptor.sequential_update else 'parallel'} update",
        "parameters": model.parameter_count,
        "cutoffs": f"edges {descriptor.e_rcut:g} Å (smooth from {descriptor.e_rcut_smth:g}), "
        f"angles {descriptor.a_rcut:g} Å (smooth from {descriptor.a_rcut_smth:g}), {switch} switch",
        "selection": f"{selection}: {descriptor.e_sel} edges, {descriptor.a_sel} angle-edges",
        "activation": f"{descriptor.activation} (fitting net {fitting.activation})",
        "fitting net": neurons,
        "dtype": f"{descriptor.precision} (fitting net {fitting.precision})",
        "head": model.head or "-",
        "heads": list(model.heads),
        "extra inputs": ", ".join(extra) or "-",
        "elements": f"{len(model.elements)}: {' '.join(model.elements)}",
        "uncertainty": _certainty(model),
        "notes": list(model.notes),
        "traps": model.traps(),
    }


def _certainty(model: ModelFile) -> str:
    found = model.covariance
    if found is None:
        return "-"
    scales = {"energies": found.alpha, "forces": found.alpha_forces}
    known = " and ".join(name for name, scale in scales.items() if scale is not None)
    text = f"from {found.count} training structures of {' '.join(found.elements)}"
    return text + (f", calibrated with {known}" if known else ", not calibrated")


def _pull(args: argparse.Namespace) -> int:
    from dpa3sim.checkpoints.registry import REGISTRY, find_entry, load_model, pull
    from dpa3sim.common.settings import suggestion

    if not args.name:
        raise InputError("model pull needs a NAME; 'dpa3sim model list' shows them")
    entry = find_entry(args.name)
    if entry is None:
        raise InputError(
            f"no model {args.name!r} in the registry"
            + (
                suggestion(args.name, [e.name for e in REGISTRY])
                or "; 'dpa3sim model list' shows all models"
            )
        )
    if entry.embedded:
        print(f"{entry.name} is part of dpa3sim; there is nothing to download")
        return 0
    path = pull(
        entry,
        sha256=args.sha256,
        allow_unverified=args.allow_unverified,
        progress=_progress() if sys.stderr.isatty() else None,
    )
    info = f"{path}: {path.stat().st_size:,} bytes"
    print(info + (", verified" if args.sha256 or entry.sha256 else ", NOT verified"))
    _check_readable(entry.name, load_model)
    return 0


def _check_readable(name: str, load_model: Any) -> None:
    """Report an unsupported model right after the download, not at its first use."""
    from dpa3sim.checkpoints.deepmd import HeadRequiredError

    try:
        load_model(name)
    except HeadRequiredError as several:
        print(f"heads: {', '.join(several.heads)}")


def _progress() -> Any:
    """A progress line on the terminal."""

    def show(done: int, total: int | None) -> None:
        share = f" of {total / 1e6:.1f} MB ({100 * done / total:.0f} %)" if total else " MB"
        end = "\n" if done == total else ""
        print(f"\r  {done / 1e6:.1f}{share}   ", end=end, file=sys.stderr, flush=True)

    return show
