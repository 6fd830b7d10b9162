from types import SimpleNamespace

import torch

from persona_lens.models.engine.stepwise import _Draws


def test_draws_of_any_device_begin_with_the_seed_go_on_and_leave_the_devices_own(monkeypatch):
    """A generator of the CPU stands in for that of a device which is not there."""
    generator = torch.Generator().manual_seed(5)
    device = SimpleNamespace(
        get_rng_state=lambda device: generator.get_state(),
        set_rng_state=lambda state, device: generator.set_state(state),
        manual_seed=generator.manual_seed,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda kind: {"mps": device}[kind])
    drawn = []
    draws = _Draws(3, torch.device("mps"))
    for _ in range(2):
        with draws.resumed():
            drawn.append(torch.cat([torch.rand(4), torch.rand(4, generator=generator)]))
        torch.rand(1, generator=generator)
    expected = torch.rand(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat([drawn[0][:4], drawn[1][:4]]), expected)
    assert torch.equal(torch.cat([drawn[0][4:], drawn[1][4:]]), expected)
    own = torch.Generator().manual_seed(5)
    torch.rand(2, generator=own)
    assert torch.equal(generator.get_state(), own.get_state())
