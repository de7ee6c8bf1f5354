"""`python -m train --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from peers.command import stage_app
from train import main

app = stage_app("train", "Train a LoRA adapter per peer on its weighted texts.", first_round=1, main=main)

if __name__ == "__main__":
    start(app, "train")
