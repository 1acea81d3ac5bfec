"""Traffic signals, on fewer situations and simulations: the simulator behaves, and the surrogate learns."""

from __future__ import annotations

import pytest

from trace_core.examples import traffic_signals

torch = pytest.importorskip("torch")
pytest.importorskip("uxsim")
pytest.importorskip("cmaes")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_simulator_is_a_function_and_green_goes_to_those_who_need_it() -> None:
    simulator = traffic_signals.Simulator()
    along, across = (0.45, 0.05, 0.05, 0.05), (0.2, 0.3, 0.3, 0.3)
    assert simulator.delay([0.5] * 3, along) == simulator.delay([0.5] * 3, along)
    assert simulator.delay([0.75] * 3, along) < simulator.delay([0.35] * 3, along)
    assert simulator.delay([0.35] * 3, across) < simulator.delay([0.75] * 3, across)
    assert simulator.simulations == 6


def test_surrogate_lowers_the_delay_with_few_simulations() -> None:
    flows, net, simulator = traffic_signals.situations(4, 0), traffic_signals.network(0), traffic_signals.Simulator()

    def delay() -> float:
        with torch.no_grad():
            logits = net(traffic_signals.scaled(flows))
        return float(traffic_signals.delays(traffic_signals.Simulator(), logits, flows).mean())

    before = delay()
    traffic_signals.learn_by_surrogate(simulator, net, flows, budget=48, seed=0)
    assert simulator.simulations == 48
    assert delay() < before


@pytest.mark.slow
@pytest.mark.parametrize("name", list(traffic_signals.METHODS))
def test_each_method_keeps_to_its_budget(name: str) -> None:
    simulator = traffic_signals.Simulator()
    net, flows = traffic_signals.network(1), traffic_signals.situations(1, 1)
    traffic_signals.METHODS[name](simulator, net, flows, 24, 1)
    least = 0 if name == "half and half" else 13  # a generation of CMA-ES does not fit the rest of any budget
    assert least <= simulator.simulations <= 24


def test_table_has_a_line_for_each_method() -> None:
    shown = traffic_signals.table({"surrogate": [0.25, 0.35], "half and half": [0.5, 0.5]})
    assert shown.splitlines()[1:] == ["surrogate       0.30  0.25  0.35", "half and half   0.50  0.50  0.50"]
