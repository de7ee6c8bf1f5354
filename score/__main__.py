"""`python -m score --run NAME --round R [--config FILE] [--set key=value]`."""

from data.stage import stage_app, start

app = stage_app(
    "score",
    "Measure how much each response tells about the aggregate (PMI) and turn it into training weights.",
    first_round=1,
)

if __name__ == "__main__":
    start(app, "score")
