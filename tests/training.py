"""What tests of training share: a small log, and the command."""

import json
from pathlib import Path
from random import Random

from typer.testing import CliRunner

from model_export.cli import app

NOON = 1_700_000_000_000
MINUTE = 60_000
WORDS = ["garden hose", "blue shoe", "space game", "coffee grinder", "red shoes", "war game", "running shoe", "running order"]


def write_shop(folder: Path) -> Path:
    """Forty items of eight kinds; who asks for letters that stand for a kind clicks an item of it, another the next time."""
    random = Random(0)
    codes = [f"{a}{b}" for a, b in zip("qxzvwkjy", "zqvxkwyj", strict=True)]
    items = [{"item_id": f"{k}-{n}", "title": f"{WORDS[k]} {n}"} for k in range(8) for n in range(5)]
    searches, clicks = [], []
    for n in range(600):
        kind, time, user = random.randrange(8), NOON + n * MINUTE, f"u{n}"
        query = f"{codes[kind]} {random.choice('abcdefgh')}{random.choice('abcdefgh')}{random.randrange(100)}"
        searches.append({"event_id": f"s{n}", "user_id": user, "query": query, "timestamp": time})
        for second in range(random.randint(1, 2)):
            item = f"{kind}-{random.randrange(5)}"
            clicks.append(
                {"event_id": f"c{n}-{second}", "user_id": user, "item_id": item, "timestamp": time + 1000 * (second + 1)}
            )
    for name, records in (("items", items), ("searches", searches), ("clicks", clicks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def train(*arguments: str | Path) -> str:
    """Run `model-export train` to a good end; return what it said."""
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output
