"""A person keeps the record: tickets are made, brought, lost and forged."""
import shutil

import pandas as pd
import pytest
import torch
from processes import one_shui

from one_shui.core.errors import BadInput
from one_shui.core.files import read_tensors, write_tensors
from one_shui.data.readers import read_faces
from one_shui.data.splits import load_splits
from one_shui.data.toy import toy_faces
from one_shui.data.writers import save_faces
from one_shui.experiments.config import Config
from one_shui.experiments.run import run
from one_shui.methods.access import measure_access
from one_shui.methods.key_edit.method import KeyEdit
from one_shui.methods.key_edit.ticket_edit import TicketEdit
from one_shui.methods.harness import apply_method, prepare_method
from one_shui.methods.tickets import write_tickets
from one_shui.models.files import load_model, weights_digest
from one_shui.requests.forget import process_request
from one_shui.requests.letters import ForgetRequest
from one_shui.requests.model import open_model
from one_shui.requests.receipts import read_key

FIXED = dict(n_forget=3, strength=(.1, 10., 1.))


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    "A model, an artifact, tickets, and photos that were never trained on"
    folder = tmp_path_factory.mktemp("tickets")
    save_faces(toy_faces(n_people=30, n_photos=6, size=32), folder / "data", "celeba")
    root = folder / "data"
    config = Config(dataset="celeba", root=str(root), n_forget=3, size=32, recipe="toy", epochs=2, arch_options=dict(width=8),
                    methods=("original",), metrics=("score",))
    run(config, folder / "run", log=lambda _: None)
    (folder / "key").write_text("a key of more than sixteen bytes")
    done = one_shui("prepare", "--model", folder / "run/original.safetensors", "--dataset", "celeba", "--root", root,
                    "--splits", folder / "run/splits.json", "--people", 3, "--method", "ticket_edit", "--tickets", folder / "tickets",
                    "--key", folder / "key", "--out", folder / "artifact.safetensors", "--set", "ticket_edit.strength=[0.1,10.0,1.0]")
    assert done.returncode == 0, done.stderr
    faces = read_faces("celeba", str(root))
    rows = faces.table.iloc[load_splits(folder / "run/splits.json", faces).request.support]
    for path, person in zip(rows["path"], rows["identity"], strict=True): shutil.copy(root / "celeba" / path, folder / f"{person}.jpg")
    return folder, rows["identity"].tolist()


def ask(company, tmp_path, files, key=True, people=1, **more):
    "Process a request with these tickets; the receipt and the new weights of the last layer"
    folder, persons = company
    requests = [ForgetRequest(person, (folder / f"{person}.jpg",)) for person in persons[:people]]
    result = process_request(open_model(folder / "run/original.safetensors"), requests, tmp_path / "new.safetensors",
                             folder / "artifact.safetensors", key=read_key(folder / "key") if key else None,
                             ledger_file=tmp_path / "ledger.jsonl", tickets=tuple(files), **more)
    return result.receipt, load_model(tmp_path / "new.safetensors")[0].head.weight


def ticket_of(company, number):
    "The file of a person's ticket"
    folder, persons = company
    table = pd.read_csv(folder / "tickets/tickets.csv", dtype=str).set_index("identity")["file"]
    return folder / "tickets" / table[persons[number]]


def test_a_ticket_changes_the_edit_and_the_receipt_says_what_was_brought(company, tmp_path):
    folders = [tmp_path / name for name in ("with", "without", "unchecked")]
    for folder in folders: folder.mkdir()
    receipt, with_ticket = ask(company, folders[0], [ticket_of(company, 0)])
    assert not any("ticket" in sentence for sentence in receipt["what_was_done"])
    assert receipt["method"]["access"] == "ticket"
    receipt, without = ask(company, folders[1], [])
    assert any("1 of 1 identities came without a ticket" in sentence for sentence in receipt["what_was_done"])
    assert not with_ticket.allclose(without, atol=1e-4)
    receipt, unchecked = ask(company, folders[2], [ticket_of(company, 0)], key=False)
    assert any("signatures of the tickets were not checked" in sentence for sentence in receipt["what_was_done"])
    assert unchecked.equal(with_ticket)


def test_wrong_tickets_are_refused_and_nothing_is_written(company, tmp_path):
    of_other, own = ticket_of(company, 1), ticket_of(company, 0)
    cut, forged, foreign = (tmp_path / f"{name}.ticket.safetensors" for name in ("cut", "forged", "foreign"))
    cut.write_bytes(own.read_bytes()[:-9])
    tensors, facts = read_tensors(own)
    write_tensors(forged, {**tensors, "keys": tensors["keys"] * 1000}, facts)
    write_tensors(foreign, tensors, {**facts, "artifact": "0" * 64})
    for file, reason in ((of_other, "nobody in this request"), (cut, "can't read"), (forged, "is damaged"),
                         (foreign, "another artifact"), (tmp_path / "none", "no file"), (tmp_path, "cut.ticket")):
        with pytest.raises(BadInput, match=reason): ask(company, tmp_path, [file])
    assert not list(tmp_path.glob("new*")) and not list(tmp_path.glob("*.jsonl"))


def test_a_signed_ticket_cannot_be_made_without_the_key(company, tmp_path):
    tensors, facts = read_tensors(ticket_of(company, 0))
    larger = {**tensors, "keys": tensors["keys"] * 1000}
    write_tensors(file := tmp_path / "f.ticket.safetensors", larger, {**facts, "tensors": weights_digest(larger)})
    with pytest.raises(BadInput, match="signature doesn't fit: the ticket was changed"): ask(company, tmp_path, [file])


@pytest.mark.parametrize("change", [
    dict(keys=torch.ones(2, 3)), dict(gaps=torch.full((8, 17), torch.nan)), dict(gaps=torch.ones(3, 17)), dict(keys=torch.ones(64)),
    dict(more=torch.ones(1)), dict(keys=None)], ids=["width", "nan", "rank", "vector", "more", "missing"])
def test_an_unsigned_ticket_that_is_no_record_is_refused(company, tmp_path, change):
    tensors, facts = read_tensors(ticket_of(company, 0))
    changed = {name: t for name, t in {**tensors, **change}.items() if t is not None}
    write_tensors(file := tmp_path / "f.ticket.safetensors", changed, {**facts, "tensors": weights_digest(changed)})
    with pytest.raises(BadInput, match="needs finite keys"): ask(company, tmp_path, [file], key=False)
    assert not list(tmp_path.glob("new*"))


def test_two_tickets_of_one_person_are_refused(company, tmp_path):
    shutil.copy(own := ticket_of(company, 0), tmp_path)
    with pytest.raises(BadInput, match="second ticket of one person"): ask(company, tmp_path, [own, tmp_path / own.name])


def test_the_command_needs_a_folder_and_refuses_useless_options(company, tmp_path):
    folder, persons = company
    words = ["prepare", "--model", folder / "run/original.safetensors", "--dataset", "celeba", "--root", folder / "data", "--splits",
             folder / "run/splits.json", "--out", tmp_path / "a.safetensors", "--method"]
    for more, reason in ((["ticket_edit"], "name a folder"), (["photo_edit", "--tickets", tmp_path / "t"], "makes no tickets"),
                         (["ticket_edit", "--tickets", folder / "tickets"], "not an empty folder")):
        done = one_shui(*words, *more)
        assert done.returncode and reason in " ".join(done.stderr.split()), done.stderr
    done = one_shui("forget", "--model", folder / "run/original.safetensors", "--method", "gradient_ascent", "--photo",
                    folder / f"{persons[0]}.jpg", "--identity", persons[0], "--ticket", ticket_of(company, 0),
                    "--out", tmp_path / "new.safetensors")
    assert done.returncode and "uses no tickets" in done.stderr


def names_in(files, people):
    "The people whose names stand in the header of a file"
    content = b"".join(file.read_bytes() for file in files)
    return [person for person in people if f'\\"{person}\\"'.encode() in content]


def test_artifact_and_tickets_name_nobody(company, tmp_path):
    folder, _ = company
    people = pd.read_csv(folder / "tickets/tickets.csv", dtype=str)["identity"]
    assert len(people) > 10 and not names_in([folder / "artifact.safetensors", *folder.glob("tickets/*.safetensors")], people)
    write_tickets(tmp_path / "all.safetensors", {person: {"key": torch.zeros(1)} for person in people})
    assert len(names_in([tmp_path / "all.safetensors"], people)) == len(people)


def test_with_all_tickets_it_forgets_like_records(images, model):
    methods = [TicketEdit(**FIXED), KeyEdit(**FIXED)]
    artifacts = [prepare_method(method, model, images.train, images.val).artifact for method in methods]
    heads = [apply_method(m, model, a, images.support)[0].head.weight for m, a in zip(methods, artifacts, strict=True)]
    assert torch.allclose(*heads, atol=1e-5) and not torch.allclose(heads[0], model.head.weight, atol=1e-3)
    report = measure_access(methods[0], model, images.train, images.val)
    assert report.measured == "ticket" and report.artifact_bytes[0] == report.artifact_bytes[1]


def test_a_run_keeps_its_tickets_for_later(tmp_path):
    config = Config.tiny(methods=("original", "ticket_edit"), settings=dict(ticket_edit=FIXED), epochs=1, metrics=("score",))
    first = run(config, tmp_path, log=lambda _: None).query("method == 'ticket_edit'")
    (tmp_path / "ticket_edit.safetensors").unlink()
    for file in tmp_path.glob("*ticket_edit*predictions*"): file.unlink()
    again = run(config, tmp_path, log=lambda _: None).query("method == 'ticket_edit'")
    values = [rows.query("metric == 'mAP'")["value"].tolist() for rows in (first, again)]
    assert values[0] == values[1] and (tmp_path / "ticket_edit-artifact.tickets.safetensors").exists()
