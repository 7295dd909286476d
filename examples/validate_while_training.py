"""Trains a small network, and measures after each epoch how much it relies on backgrounds.

python examples/validate_while_training.py OUT [flags of `in9 generate`]
"""

import sys

import torch

import in9

EPOCHS = 3


def network(outputs):
    """Makes a small network for pictures of any size."""
    convolution = torch.nn.Conv2d(3, 16, 5, stride=4)
    pool = torch.nn.AdaptiveAvgPool2d(4)
    head = torch.nn.Linear(16 * 16, outputs)
    return torch.nn.Sequential(convolution, torch.nn.ReLU(), pool, torch.nn.Flatten(), head)


def main(output, *flags):
    """Makes the dataset if it is missing, and trains on the originals."""
    words = (flag.lstrip("-") for flag in flags)
    dataset = in9.generate_dataset(output, **dict(zip(words, words, strict=True)))
    torch.manual_seed(0)
    model = network(len(dataset.classes))
    optimizer = torch.optim.Adam(model.parameters())
    to_batch = torch.utils.data.DataLoader(
        [(torch.from_numpy(image).permute(2, 0, 1) / 255, label) for image, label, _ in dataset],
        batch_size=8,
        shuffle=True,
    )
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for images, labels in to_batch:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        # The module is copied, so the training goes on as if this line were not there.
        result = in9.evaluate_model(dataset, model, name="small network")
        gap, low, high = (100 * figure for figure in result.bg_gap)
        accuracy = 100 * result.accuracy["original"][0]
        print(f"epoch {epoch}: {accuracy:.1f} %, BG-Gap {gap:.1f} [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
