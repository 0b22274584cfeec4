"""Training the points of a search in turn, and what is left when it ends."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from data import Data
from model_compound_scaling.checkpoints.atomic_save import write_text
from model_compound_scaling.checkpoints.errors import DiskError
from model_compound_scaling.command_line.tables import to_csv
from model_compound_scaling.machine import Log, processes
from model_compound_scaling.runs import History, RunRequest, copy_best, finished, turn
from model_compound_scaling.runs.history import TargetMissed
from model_compound_scaling.search.points import Point
from model_compound_scaling.search.results_table import HEADER, rows, to_text
from model_compound_scaling.search.search import Search
from model_compound_scaling.search.train_network import Training, require_memory, train_point


@dataclass(eq=False)
class Trainer:
    """Trains one point a call, in a folder of its own below that of `request`. Of several `shards`
    each n-th point, from the shard-th (1, 2 ...) on; the others are for other machines."""

    training: Training
    request: RunRequest
    open_data: Callable[[Point], Data]  # for a point's image size
    device: torch.device
    log: Log
    shard: int = 1
    shards: int = 1
    init: nn.Module | None = None  # with whose weights to begin

    def __post_init__(self) -> None:
        self.data: Data | None = None
        self.mine = itertools.cycle([i == self.shard - 1 for i in range(self.shards)])

    def __call__(self, point: Point) -> History | None:
        """The point's history; None if it is another machine's, which has not finished it."""
        mine, training, done = next(self.mine), self.training, None
        config = self.request.config
        config = replace(config, values=config.values | {"network": point.name})
        request = replace(self.request, folder=self.request.folder / point.name, config=config)
        if request.resume == "auto":
            done = processes.from_main(
                lambda: finished(request.folder, config=config, epochs=training.epochs)
            )
        if done and config.values.get("holdout") and not done.reported:
            done = None  # trained, but not measured
        if done:
            self.log(f"{point.name}: already trained for {done.epochs_done} epochs")
        if done or not mine:
            return done
        require_memory(point, self.device, averaged=training.ema > 0)
        if self.data is None or self.data.image_size != point.image_size:
            self.data = None  # make room first
            self.data = self.open_data(point)
        rest = {"data": self.data, "device": self.device, "init": self.init}
        return train_point(point, training, request, **rest)

    def conclude(self, search: Search, found: Point | None) -> None:
        """Print and write the table, and copy the best network, or `found`, that reached the
        target. TargetMissed if there is a target and none has reached it."""
        histories = [search.trained[found]] if found else list(search.trained.values())
        output = self.request.folder
        try:
            output.mkdir(parents=True, exist_ok=True)  # there may have been nothing to train here
        except OSError as error:
            raise DiskError(f"cannot make {output}: {error.strerror}") from None
        with turn(output):  # other machines may end at the same time
            winner = copy_best(histories, output / "best_model.pt")
            table = rows(search.trained, search.missing)
            self.log(*to_text(table).splitlines())
            if processes.is_main():
                header = (*HEADER, "epochs", "mean_of_best_5", "best", "validation")
                write_text(to_csv(header, table), output / "results.csv")
        if search.missing:
            names = ", ".join(point.name for point in search.missing)
            self.log(f"not trained yet: {names}; once they are, call this again to go on")
        if winner is None:
            return
        name, top1 = winner.folder.name, f"top-1 {winner.best['val_top1']:.2f} %"
        if found:
            self.log(f"{name} reaches {search.target:g} %: {top1}")
        self.log(f"best network: {output / 'best_model.pt'}")
        if search.target and not found and not search.missing:
            goal = f"--target-accuracy {search.target:g} is not reached"
            raise TargetMissed(f"{goal}: the best, {name}, has {top1}")
