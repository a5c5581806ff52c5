"""Trains a plain PyTorch classifier on a store's shards; of this project only `featurestore` is imported.

Run it with a store's folder or URL:  python examples/train_plain_pytorch.py data/demo
"""

import sys

import torch
from torch import Tensor, nn

import featurestore

NUM_EPOCHS, BATCH_SIZE, PEAK_LR = 12, 12, 1e-2


def classifier(num_classes: int) -> nn.Module:
    """Fbanks (B, 1, T, F) to logits (B, num_classes): three convolutions, and a mean over time in four bands."""
    layers: list[nn.Module] = []
    for num_in, num_out, kernel, stride in ((1, 16, 5, 4), (16, 32, 3, 2), (32, 64, 3, 2)):
        layers += [nn.Conv2d(num_in, num_out, kernel, stride, padding=kernel // 2), nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(64 * 4, num_classes))


def loss_and_correct(model: nn.Module, batch: featurestore.Tensors) -> tuple[Tensor, int]:
    logits, classes = model(batch.fbank[:, None]), batch.classes()
    return nn.functional.cross_entropy(logits, classes), int((logits.argmax(1) == classes).sum())


def main(address: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    store = featurestore.open(address)
    part = store.hold_out()  # the store's eval split; else its first fold; else a seeded fifth
    train = store.loader(min(BATCH_SIZE, len(part.train)), rows=part.train)
    held_out = store.loader(BATCH_SIZE, rows=part.held_out, shuffle=False)
    model = classifier(len(store.vocabulary)).to(device)
    optimiser = torch.optim.AdamW(model.parameters())
    num_steps = sum(train.num_batches(epoch) for epoch in range(NUM_EPOCHS))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, total_steps=num_steps)

    for epoch in range(NUM_EPOCHS):
        model.train()
        for batch in train.tensors(epoch, device):
            loss, _ = loss_and_correct(model, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

    model.eval()
    with torch.inference_mode():
        num_correct = sum(loss_and_correct(model, batch)[1] for batch in held_out.tensors(0, device))
    print(
        f"held out ({part.name}): {num_correct} of {len(part.held_out)} right, {num_correct / len(part.held_out):.1%}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
