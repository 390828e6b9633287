"""Receipts, ledgers, models and artifacts that version 0.1.0 wrote are read and checked."""
import shutil
from pathlib import Path

import pytest

from one_shui.core.errors import BadInput
from one_shui.core.files import read_header
from one_shui.core.legacy import new_keys
from one_shui.data.readers import read_faces
from one_shui.requests.artifact import artifact_summary, identity_code, read_artifact
from one_shui.requests.case import Options
from one_shui.requests.forget import process_request
from one_shui.requests.ledger import Ledger
from one_shui.requests.letters import ForgetRequest
from one_shui.requests.model import open_model
from one_shui.requests.receipts import check_receipt, read_key, read_receipt, receipt_page

OLD = Path(__file__).parent / "fixtures" / "v0.1.0"
SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture
def desk(tmp_path):
    "Copies of the old files, so that requests can write beside them"
    for file in OLD.iterdir():
        if file.is_file(): shutil.copy(file, tmp_path / file.name)
    return tmp_path


def test_an_old_receipt_fits_its_key_models_and_ledger(desk):
    receipt = read_receipt(desk / "model-2.receipt.json")
    errors = check_receipt(receipt, read_key(desk / "key"), desk / "model.safetensors",
                           desk / "model-2.safetensors", desk / "model.safetensors.ledger.jsonl")
    assert errors == []
    assert "rehearsed" in receipt, "the signature covers the old keys"


def test_a_changed_old_receipt_is_detected(desk):
    receipt = read_receipt(desk / "model-2.receipt.json")
    changed = dict(receipt, rehearsed=dict(receipt["rehearsed"], people=3))
    assert check_receipt(changed, read_key(desk / "key"))
    assert check_receipt(new_keys(receipt), read_key(desk / "key")), "new keys are another text"


def test_old_keys_have_present_names():
    receipt = new_keys(read_receipt(OLD / "model-2.receipt.json"))
    assert receipt["simulated"]["people"] == 2
    assert receipt["simulated"]["matched_nonmembers"] == pytest.approx(68.84412393162394)
    assert set(receipt["measured"]) == {"support image loss before", "support image loss after"}
    assert "<td>simulated people</td><td>2</td>" in receipt_page(receipt)


@pytest.mark.parametrize("name", ["key_edit", "metaunlearn", "ssd"])
def test_old_artifacts_are_read(name):
    file = OLD / f"{name}.artifact.safetensors"
    artifact = read_artifact(file)
    assert artifact.facts["method"] == name
    assert artifact.facts["weights"] == open_model(OLD / "model.safetensors").weights
    assert artifact.facts["simulated"]["people"] == 2
    assert "matched non-members: 68.8 %" in artifact_summary(artifact)[-1]
    assert "rehearsed" in read_header(file)


def test_a_changed_old_artifact_is_damaged(desk):
    file = desk / "ssd.artifact.safetensors"
    content = file.read_bytes()
    assert content.count(b'\\"crop\\": 1.0') == 1
    file.write_bytes(content.replace(b'\\"crop\\": 1.0', b'\\"crop\\": 0.5'))
    with pytest.raises(BadInput, match="its seal doesn't fit"): read_artifact(file)


def letter(row):
    "A request from a row of the sample"
    return ForgetRequest(row["identity"], (SAMPLE / "celeba" / row["path"],))


def recorded_rows(artifact):
    "One row of the sample per person that the artifact has a record of"
    table = read_faces("celeba", SAMPLE).table.drop_duplicates("identity")
    codes, weights = set(artifact.facts["people"]), artifact.facts["weights"]
    is_recorded = [identity_code(person, weights) in codes for person in table["identity"]]
    return [row for _, row in table[is_recorded].iterrows()]


def test_another_request_with_an_old_model_and_artifact(desk):
    "The first old request is in the ledger; the next one starts from the model that it produced"
    artifact_file = desk / "key_edit.artifact.safetensors"
    first = read_receipt(desk / "model-2.receipt.json")
    newest = open_model(desk / "model-2.safetensors")
    assert newest.processed_requests == [first["request"]]
    rows = recorded_rows(read_artifact(artifact_file))
    assert len(rows) == 7
    dry_run = Options(dry_run=True)
    results = [process_request(newest, [letter(row)], desk / "x.safetensors", artifact_file,
                               options=dry_run) for row in rows[:2]]
    assert any(not result.again for result in results)
    row = next(row for row, result in zip(rows, results, strict=False) if not result.again)
    result = process_request(newest, [letter(row)], desk / "model-9.safetensors", artifact_file,
                             key=read_key(desk / "key"))
    ledger = desk / "model.safetensors.ledger.jsonl"
    events = [line["event"] for line in Ledger.read(ledger).lines]
    assert events == ["started", "done"] * 2
    assert check_receipt(read_receipt(desk / "model-9.receipt.json"), read_key(desk / "key"),
                         desk / "model-2.safetensors", desk / "model-9.safetensors", ledger) == []
    assert result.receipt["simulated"]["people"] == 2


def test_the_old_model_is_superseded(desk):
    "Another request to the first model is refused, because the old ledger names a newer one"
    artifact_file = desk / "key_edit.artifact.safetensors"
    model = open_model(desk / "model.safetensors")
    results = []
    for row in recorded_rows(read_artifact(artifact_file))[:3]:
        try:
            results.append(process_request(model, [letter(row)], desk / "x.safetensors",
                                           artifact_file, options=Options(dry_run=True)).again)
        except BadInput as error:
            results.append("would not have forgotten those people" in str(error))
    assert results == [True] * 3
