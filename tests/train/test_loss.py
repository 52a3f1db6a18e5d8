"""The loss: its definition, its derivatives, missing labels, parts of a batch."""

import dataclasses
import itertools

import pytest
import torch
from tests_support import NoHostAccess

from dpa3sim.common.errors import InputError
from dpa3sim.train.loss import Labels, Loss, Measures, Predictions, Seeds, measure
from dpa3sim.train.settings import LossSettings

SIZES = (3, 1, 5, 2)
ALL = {"start_pref_ae": 0.7, "limit_pref_ae": 0.3}
START, LR = 1e-3, 4e-4
KINDS = [
    {"loss": "mse"},
    {"loss": "mse", "intensive": True},
    {"loss": "mse", "relative_f": 0.5},
    {"loss": "huber", "huber_delta": 0.4},
    {"loss": "huber", "huber_delta": 0.4, "force_norm": True},
    {"loss": "mae"},
    {"loss": "mae", "force_norm": True},
]
NAN = float("nan")


def a_batch(sizes=SIZES, seed=0):
    """Predictions that autograd follows, and complete labels."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    n, b = sum(sizes), len(sizes)
    n_atoms_of = torch.tensor(sizes, dtype=torch.int64)
    structure = torch.repeat_interleave(torch.arange(b), n_atoms_of)
    strain = normal(b, 3, 3)
    labels = Labels(
        structure=structure,
        n_atoms_of=n_atoms_of,
        energy=normal(b),
        forces=normal(n, 3),
        virial=strain + strain.mT,
        weight=normal(b).square() + 0.5,
        atomic_energies=normal(n),
    )
    values = [normal(b), normal(n, 3), normal(b, 3, 3), normal(n)]
    return Predictions(*(v.requires_grad_() for v in values)), labels


def without(labels, **frames):
    """Labels that lack some quantities in some frames."""
    changes = {}
    for name, missing in frames.items():
        values = getattr(labels, name).clone()
        for frame in missing:
            per_atom = name in ("forces", "atomic_energies")
            values[labels.structure == frame if per_atom else frame] = NAN
        changes[name] = values
    return dataclasses.replace(labels, **changes)


def by_definition(settings, predicted, labels, lr=LR, start=START):
    """Formulas of deepmd-kit, frame by frame."""
    p = {
        t: getattr(settings, f"limit_pref_{t}")
        + (getattr(settings, f"start_pref_{t}") - getattr(settings, f"limit_pref_{t}")) * lr / start
        for t in ("e", "f", "v", "ae")
    }
    delta, power = settings.huber_delta, 2 if settings.intensive else 1

    def rho(x):
        if settings.loss == "huber":
            x = abs(x)
            return torch.where(x <= delta, x**2 / 2, delta * (x - delta / 2))
        return x.abs()

    terms = {"e": [], "f": [], "v": [], "ae": []}
    for f, n in enumerate(labels.n_atoms_of.tolist()):
        own, w = labels.structure == f, labels.weight[f]
        de, df = predicted.energy[f] - labels.energy[f], predicted.forces[own] - labels.forces[own]
        dw, da = predicted.virial[f] - labels.virial[f], None
        if labels.atomic_energies is not None:
            da = predicted.atomic_energies[own] - labels.atomic_energies[own]
        if settings.relative_f is not None:
            df = df / (labels.forces[own].norm(dim=1, keepdim=True) + settings.relative_f)
        if settings.loss == "mse":
            found = {"e": de**2 / n**power, "f": (df**2).sum() / (3 * n)}
            found |= {"v": (dw**2).sum() / (9 * n**power), "ae": None if da is None else da**2}
        else:
            found = {
                "e": rho(de / n),
                "v": rho(dw / n).mean(),
                "ae": None if da is None else rho(da),
            }
            found["f"] = rho(df.norm(dim=1) if settings.force_norm else df).mean()
        for term, value in found.items():
            if value is not None and not value.isnan().any():
                terms[term].append(w * value.mean())
    return sum(p[t] * sum(v) / len(v) for t, v in terms.items() if v and p[t])


def derivatives(loss, predicted):
    """By autograd: with respect to energies, forces, virial, atomic energies."""
    inputs = [predicted.energy, predicted.forces, predicted.virial, predicted.atomic_energies]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


def detached(predicted):
    values = (getattr(predicted, f.name).detach() for f in dataclasses.fields(predicted))
    return Predictions(*values)


def check_derivatives(settings, predicted, labels):
    expected = by_definition(settings, predicted, labels)
    loss, seeds, _ = Loss(settings, START)(detached(predicted), labels, LR)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    energy, forces, virial, atoms = derivatives(expected, predicted)
    exact = Seeds(atoms + energy[labels.structure], forces, virial)
    for field in dataclasses.fields(Seeds):
        got, wanted = getattr(seeds, field.name), getattr(exact, field.name)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o.values())))
def test_loss_and_seeds_are_those_of_the_formula(options):
    settings = LossSettings(**options, **ALL)
    predicted, labels = a_batch()
    check_derivatives(settings, predicted, labels)
    some = without(labels, energy=[1], forces=[0, 3], virial=[1, 2], atomic_energies=[2])
    check_derivatives(settings, predicted, some)
    none = without(labels, forces=range(4), virial=range(4))
    check_derivatives(settings, predicted, dataclasses.replace(none, atomic_energies=None))


def test_equal_sizes_give_the_formula_of_deepmd_kit():
    predicted, labels = a_batch(sizes=(4, 4, 4))
    labels = dataclasses.replace(labels, weight=torch.ones(3, dtype=torch.float64))
    p = detached(predicted)
    expected = (
        2.0 * (p.energy - labels.energy).square().mean() / 4
        + 3.0 * (p.forces - labels.forces).square().mean()
        + 5.0 * (p.virial - labels.virial).square().mean() / 4
        + 7.0 * (p.atomic_energies - labels.atomic_energies).square().mean()
    )
    constant = {"e": 2.0, "f": 3.0, "v": 5.0, "ae": 7.0}
    settings = LossSettings(
        **{f"{end}_pref_{t}": v for t, v in constant.items() for end in ("start", "limit")}
    )
    torch.testing.assert_close(Loss(settings, START)(p, labels, LR)[0], expected)


def test_prefactors_follow_the_learning_rate():
    loss = Loss(LossSettings(), 1e-3)
    assert loss.prefactors(1e-3) == pytest.approx({"e": 0.2, "f": 100, "v": 0.02, "ae": 0})
    assert loss.prefactors(0.0) == pytest.approx({"e": 20, "f": 60, "v": 1, "ae": 0})
    # The recipe stops at 3 % of its first rate.
    end = loss.prefactors(3e-5)
    assert (end["e"], end["f"], end["v"]) == pytest.approx((19.406, 61.2, 0.9706))


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o.values())))
def test_no_error_no_slope(options):
    _, labels = a_batch()
    exact = Predictions(labels.energy, labels.forces, labels.virial, labels.atomic_energies)
    loss, seeds, measures = Loss(LossSettings(**options, **ALL), START)(exact, labels, LR)
    assert loss == 0
    assert all(not getattr(seeds, f.name).any() for f in dataclasses.fields(seeds))
    assert set(measures.values().values()) == {0.0}


def test_predictions_without_label_do_not_matter():
    predicted, labels = a_batch()
    labels = without(labels, energy=[0], forces=[0], virial=[0], atomic_energies=[0])
    clean = detached(predicted)
    broken = Predictions(*(getattr(clean, f.name).clone() for f in dataclasses.fields(clean)))
    first = labels.structure == 0
    for values, rows in zip(
        (broken.energy, broken.forces, broken.virial, broken.atomic_energies),
        (0, first, 0, first),
        strict=True,
    ):
        values[rows] = NAN
    loss = Loss(LossSettings(**ALL), START)
    for a, b in zip(
        everything(loss(clean, labels, LR)), everything(loss(broken, labels, LR)), strict=True
    ):
        assert torch.equal(a, b)


def everything(result):
    loss, seeds, measures = result
    return [loss, seeds.energy, seeds.forces, seeds.virial, measures.sums]


def test_frame_with_one_missing_force_has_no_forces():
    predicted, labels = a_batch()
    one = labels.forces.clone()
    one[1, 2] = NAN
    whole = without(labels, forces=[0])
    loss, p = Loss(LossSettings(), START), detached(predicted)
    partly = dataclasses.replace(labels, forces=one)
    for a, b in zip(everything(loss(p, partly, LR)), everything(loss(p, whole, LR)), strict=True):
        assert torch.equal(a, b)


def test_term_with_prefactor_0_is_not_trained_but_measured():
    predicted, labels = a_batch()
    settings = LossSettings(start_pref_v=0, limit_pref_v=0)
    _, seeds, measures = Loss(settings, START)(detached(predicted), labels, LR)
    assert not seeds.virial.any()
    assert measures.values()["rmse_virial_per_atom_eV"] > 0


def split(predicted, labels):
    """The frames 0 and 1, and the frames 2 and 3."""
    for frames in ([0, 1], [2, 3]):
        atoms = (labels.structure >= frames[0]) & (labels.structure <= frames[1])
        yield (
            Predictions(
                predicted.energy[frames],
                predicted.forces[atoms],
                predicted.virial[frames],
                predicted.atomic_energies[atoms],
            ),
            Labels(
                labels.structure[atoms] - frames[0],
                labels.n_atoms_of[frames],
                labels.energy[frames],
                labels.forces[atoms],
                labels.virial[frames],
                labels.weight[frames],
                labels.atomic_energies[atoms],
            ),
        )


def test_parts_on_several_ranks_add_up():
    predicted, labels = a_batch()
    labels = without(labels, energy=[1], forces=[2, 3], virial=[0, 1, 2])
    loss, predicted = Loss(LossSettings(**ALL), START), detached(predicted)
    whole, seeds, measures = loss(predicted, labels, LR)
    parts = list(split(predicted, labels))
    counts = {t: sum(own.counts[t] for _, own in parts) for t in ("e", "f", "v", "ae")}
    for scale in (counts, {term: float(n) for term, n in counts.items()}):
        results = [loss(p, own, LR, scale) for p, own in parts]
        torch.testing.assert_close(sum(r[0] for r in results), whole, rtol=1e-14, atol=0)
        for name in ("energy", "forces", "virial"):
            joined = torch.cat([getattr(r[1], name) for r in results])
            torch.testing.assert_close(joined, getattr(seeds, name), rtol=1e-14, atol=0)
        total = results[0][2] + results[1][2]
        assert total.values() == pytest.approx(measures.values(), rel=1e-14)


def test_rank_without_frames():
    predicted, labels = a_batch(sizes=())
    loss, seeds, measures = Loss(LossSettings(**ALL), START)(detached(predicted), labels, LR)
    assert loss == 0
    assert seeds.forces.shape == (0, 3)
    assert measures.values() == {}


def test_measures_are_averages_over_all_components():
    predicted, labels = a_batch()
    labels = without(labels, energy=[0], forces=[1, 2])
    p = detached(predicted)
    values = measure(p, labels).values()
    energy = ((p.energy - labels.energy) / labels.n_atoms_of)[1:]
    forces = (p.forces - labels.forces)[(labels.structure == 0) | (labels.structure == 3)]
    virial = (p.virial - labels.virial) / labels.n_atoms_of.view(-1, 1, 1)
    for name, errors in {
        "energy_per_atom_eV": energy,
        "forces_eV_per_A": forces,
        "virial_per_atom_eV": virial,
    }.items():
        assert values[f"rmse_{name}"] == pytest.approx(float(errors.square().mean().sqrt()))
        assert values[f"mae_{name}"] == pytest.approx(float(errors.abs().mean()))


def test_quantities_without_labels_have_no_measure():
    predicted, labels = a_batch()
    labels = without(labels, virial=range(4))
    values = measure(detached(predicted), labels).values()
    assert len(values) == 4
    assert not any("virial" in name for name in values)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o.values())))
def test_host_does_not_wait(options):
    predicted, labels = a_batch()
    loss, p = Loss(LossSettings(**options, **ALL), START), detached(predicted)
    with NoHostAccess():
        loss(p, labels, LR)


@pytest.mark.parametrize(("term", "end"), list(itertools.product("efv", ("start", "limit"))))
def test_one_zero_prefactor_is_refused(term, end):
    with pytest.raises(InputError, match=f"{end}_pref_{term} = 0 beside"):
        LossSettings(**{f"{end}_pref_{term}": 0.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l2"}, "mse, huber, mae"),
        ({"start_pref_ae": 1.0}, "limit_pref_ae = 0 beside"),
        ({f"{e}_pref_{t}": 0 for e in ("start", "limit") for t in "efv"}, "all prefactors"),
        ({"start_pref_e": -1.0}, "at least 0"),
        ({"huber_delta": 0.0}, "above 0"),
        ({"relative_f": 0.0}, "above 0"),
        ({"loss": "huber", "relative_f": 1.0}, "needs loss=mse"),
        ({"force_norm": True}, "needs loss=huber"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        LossSettings(**options)


def test_bad_learning_rate():
    with pytest.raises(InputError, match="above 0"):
        Loss(LossSettings(), 0.0)


def test_atomic_energies_must_be_predicted_if_trained():
    predicted, labels = a_batch()
    incomplete = dataclasses.replace(detached(predicted), atomic_energies=None)
    Loss(LossSettings(), START)(incomplete, labels, LR)
    with pytest.raises(ValueError, match="atomic energies"):
        Loss(LossSettings(**ALL), START)(incomplete, labels, LR)


def test_sums_of_measures_are_one_tensor():
    sums = torch.eye(3, dtype=torch.float64)
    assert torch.equal((Measures(sums) + Measures(sums)).sums, 2 * sums)
