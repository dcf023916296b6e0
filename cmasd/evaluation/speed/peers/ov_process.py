"""The process that OpenVINO decodes in: a script for an interpreter that has `openvino_genai`, and nothing of cmasd.

Reads a line of JSON from stdin for each request and writes one to stdout. The first names the models and threads; an
answer of {"ready": version} says that `openvino_genai` is there. Each further one is rows of token ids with their
limits, for so many rows at a time, and is answered with the ids of each and the seconds that decoding took. An answer
may be {"error": sentence} in place of either.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pipelines = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if pipelines is None:
                pipelines, answer = Pipelines(asked), {"ready": version()}
            else:
                answer = pipelines.decode(asked)
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is an answer
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def version() -> str:
    """Of openvino_genai."""
    import openvino_genai

    return str(openvino_genai.__version__)


class Pipelines:
    """The models, ready for one number of rows at a time; loaded again where that changes."""

    def __init__(self, asked: dict[str, Any]) -> None:
        """`model`, and `drafter` or null, are folders; `threads`."""
        import openvino_genai

        self._genai, self._asked, self._slots, self._begun = openvino_genai, asked, 0, 0
        self._pipeline: Any = None

    def decode(self, asked: dict[str, Any]) -> dict[str, Any]:
        """`rows`, `limits`, `slots`, `eos` ids; and `drafted`, tokens of a draft."""
        import numpy as np
        import openvino

        if self._slots != asked["slots"]:
            self._pipeline = None
            self._pipeline, self._slots = self._load(asked["slots"]), asked["slots"]
        rows = [openvino.Tensor(np.array([row], dtype=np.int64)) for row in asked["rows"]]
        configs = [self._config(limit, asked) for limit in asked["limits"]]
        started = time.perf_counter()
        outputs = self._run(rows, configs)
        return {"outputs": outputs, "seconds": time.perf_counter() - started}

    def _run(self, rows: list[Any], configs: list[Any]) -> list[list[int]]:
        """No more than `slots` rows at a time: the scheduler's own bound lets more begin."""
        waiting = list(range(len(rows)))[::-1]
        live: dict[int, Any] = {}
        outputs: list[list[int]] = [[] for _ in rows]
        while waiting or live:
            while waiting and len(live) < self._slots:
                row = waiting.pop()
                self._begun += 1
                live[row] = self._pipeline.add_request(self._begun, rows[row], configs[row])
            self._pipeline.step()
            running = self._genai.GenerationStatus.RUNNING
            for row in [row for row, handle in live.items() if handle.get_status() != running]:
                outputs[row] = list(live.pop(row).read_all()[0].generated_ids)
        return outputs

    def _load(self, slots: int) -> Any:
        """Nothing is kept from one call to the next."""
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_seqs = slots
        threads = {"INFERENCE_NUM_THREADS": self._asked["threads"]}
        options: dict[str, Any] = dict(threads)
        if self._asked["drafter"] is not None:
            options["draft_model"] = self._genai.draft_model(self._asked["drafter"], "CPU", **threads)
        return self._genai.ContinuousBatchingPipeline(self._asked["model"], scheduler, "CPU", options)

    def _config(self, limit: int, asked: dict[str, Any]) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = limit
        config.do_sample = False
        config.stop_token_ids = set(asked["eos"])
        config.eos_token_id = asked["eos"][0] if asked["eos"] else -1
        if self._asked["drafter"] is not None:
            config.num_assistant_tokens = asked["drafted"]
        return config


if __name__ == "__main__":
    main()
