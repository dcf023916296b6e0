"""`cmasd run` from and to an S3 that fails now and then, then for good; no secret is found anywhere afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_s3 import BUCKET, SECRET, TOKEN, Fault, faulty_s3
from tests.integration.conftest import SENTENCES

ROOT = Path(__file__).parents[2]


def run(pair: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "jobs",
        "run",
        f"input.path=s3://{BUCKET}/in",
        f"output.path=s3://{BUCKET}/out/run",
    ]
    command += ["output.rows_per_shard=4", "engine.slots=4", "engine.max_new_tokens=6", *overrides]
    command += [f"models.{name}={pair}/{name}" for name in ("verifier", "drafter")]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_outlasts_faults_and_keeps_secrets(pair: Path) -> None:
    boto3: Any = pytest.importorskip("boto3")
    with faulty_s3() as s3:
        client = boto3.client("s3")
        lines = [json.dumps({"text": SENTENCES[n % 6]}) + "\n" for n in range(24)]
        client.put_object(Bucket=BUCKET, Key="in/in.jsonl", Body="".join(lines).encode())
        # Alternating, so that no request meets more faults than it has attempts.
        s3.faults = [Fault(kind, 1, method) for kind in ("internal", "slow_down", "drop") for method in ("GET", "PUT")]
        s3.faults += [Fault("internal", 1, "PUT", f"part-00000-00000{n}") for n in range(6)]
        done = run(pair)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["rows"] == 24
        assert s3.injected == {"internal": 8, "slow_down": 2, "drop": 2}
        outputs = client.list_objects_v2(Bucket=BUCKET, Prefix="out/run/outputs/")["Contents"]
        assert sorted(entry["Key"][-11:] for entry in outputs) == [f"{n}.parquet".rjust(11, "0") for n in range(6)]

        client.delete_object(Bucket=BUCKET, Key=outputs[0]["Key"])
        s3.faults = [Fault("expired", 10_000, "PUT")]
        failed = run(pair, "--debug")
        s3.faults = [Fault("denied", 10_000)]
        refused = run(pair, "--debug")
        s3.faults = []
        assert (failed.returncode, refused.returncode) == (1, 2)
        assert "the credentials have expired. Renew them and run the same command again." in failed.stderr
        assert "access is denied" in refused.stderr
        stored = client.list_objects_v2(Bucket=BUCKET)["Contents"]
        written = [client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in stored]
        said = [text.encode() for one in (done, failed, refused) for text in (one.stdout, one.stderr)]
        assert len(written) > 8
        for secret in (SECRET, TOKEN):
            assert not any(secret.encode() in data for data in [*written, *said])
