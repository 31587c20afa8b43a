"""Use the mathematics of FALCON without any model: choose a layer, build targets, combine gradients.

Usage: python examples/pure_functions.py
"""

import torch

from falcon_unlearn import (
    info_nce_loss,
    mutual_information,
    principal_directions,
    principal_offset_vectors,
    resolve_conflict,
    retention_loss,
    select_layers,
)

NUM_SAMPLES, LENGTH, HIDDEN = 64, 6, 32


def main() -> None:
    """Walk through the three steps on random states."""
    generator = torch.Generator().manual_seed(0)

    # Step 1: activations by layer in, a layer out. Layer 2 is where the two sets overlap most.
    distance = {0: 2.0, 1: 1.0, 2: 0.1, 3: 1.5}
    retain = {layer: torch.randn(NUM_SAMPLES, HIDDEN, generator=generator) for layer in distance}
    forget = {
        layer: torch.randn(NUM_SAMPLES, HIDDEN, generator=generator) + shift
        for layer, shift in distance.items()
    }
    selection = select_layers(forget, retain)
    print("layer", selection.choice.layer, "-", selection.choice.reason)
    paired = forget[2][:, :2]
    noisy = paired + 0.5 * torch.randn(paired.shape, generator=generator)
    print(f"information of noisy copies: {mutual_information(paired, noisy):.2f} nats")

    # Step 2: targets without energy in the principal span, and the two losses.
    directions = principal_directions(forget[2], 4)
    target = principal_offset_vectors(directions, (), generator)
    print(f"energy of the target in the span: {float((directions @ target).norm()):.1e}")
    frozen = torch.randn(8, LENGTH, HIDDEN, generator=generator)
    weight = torch.eye(HIDDEN).requires_grad_()
    mask = torch.ones(8, LENGTH, dtype=torch.bool)
    moved = frozen @ weight + 0.01 * torch.randn(frozen.shape, generator=generator)
    forget_loss = info_nce_loss(moved[:4], target, frozen[None, :4], mask[:4], temperature=0.7)
    retain_loss = retention_loss(moved[4:], frozen[4:], mask[4:])

    # Step 3: the forget gradient loses what would undo retention.
    gradients = {"weight": torch.autograd.grad(forget_loss, weight, retain_graph=True)[0]}
    kept = {"weight": 10 * torch.autograd.grad(retain_loss, weight)[0]}
    resolved = resolve_conflict(gradients, kept)
    against = float((resolved.gradients["weight"] * kept["weight"]).sum())
    print(
        f"cosine of the gradients {resolved.cosines['weight']:+.3f}, update against retention {against:+.2e}"
    )


if __name__ == "__main__":
    main()
