import os
from pathlib import Path

import pandas as pd
import pytest

from vgg16_xray.errors import UserError
from vgg16_xray.films.dataset import parse_mapping, scan, source_of_url
from vgg16_xray.films.phantom import write_dataset


def touch(root: Path, *paths: str | bytes) -> Path:
    """Files that the scan takes for films by their names; nothing here decodes one."""
    for path in paths:
        file = root / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"film")
    return root


def labelled(dataset) -> dict[str, str]:
    return {film.path: film.label for film in dataset.films}


def refused(*data: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        scan(list(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def two(tmp_path) -> Path:
    return touch(tmp_path / "data", "A/1.png", "A/2.png", "B/3.png")


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_folder_a_class(two):
    dataset = scan([two])
    assert labelled(dataset) == {"A/1.png": "A", "A/2.png": "A", "B/3.png": "B"}
    assert dataset.labels == ("A", "B")
    assert dataset.collections == {"data": two}
    assert [dataset.file_of(film).exists() for film in dataset.films] == [True] * 3
    assert {(f.patient_id, f.source, f.split, f.mask) for f in dataset.films} == {(None,) * 4}


def test_films_lie_deeper_and_in_every_format(tmp_path):
    names = [f"A/x/y/{n}.{suffix}" for n, suffix in enumerate(("PNG", "jpg", "JPEG", "tif", "tiff", "bmp", "webp"))]
    dataset = scan([touch(tmp_path, *names, "B/1.dcm", "B/2.dicom")])
    assert len(dataset.films) == 9


def test_the_kaggle_tree_with_masks_and_sources(tmp_path):
    from openpyxl import Workbook

    touch(tmp_path, "COVID/images/COVID-1.png", "COVID/images/COVID-2.png", "COVID/masks/COVID-1.png")
    touch(tmp_path, "Normal/images/Normal-1.png", "Normal/masks/Normal-1.png", "Normal/masks/Normal-9.png")
    touch(tmp_path, "README.md.txt")
    for label, rows in {
        "COVID": [("COVID-1", "https://sirm.org/category/x"), ("COVID-2", "https://github.com/armiro/COVID-CXNet")],
        "Normal": [("NORMAL-1", "https://www.kaggle.com/c/rsna-pneumonia"), ("NORMAL-2", "http://[broken")],
    }.items():
        book = Workbook()
        for row in [("FILE NAME", "FORMAT", "SIZE", "URL"), *((n, "PNG", "256*256", url) for n, url in rows)]:
            book.active.append(row)
        book.save(tmp_path / f"{label}.metadata.xlsx")
    dataset = scan([tmp_path])
    assert {film.path: (film.source, film.mask) for film in dataset.films} == {
        "COVID/images/COVID-1.png": ("sirm.org", "COVID/masks/COVID-1.png"),
        "COVID/images/COVID-2.png": ("github.com/armiro/COVID-CXNet", None),
        "Normal/images/Normal-1.png": ("kaggle.com/c/rsna-pneumonia", "Normal/masks/Normal-1.png"),
    }
    assert dataset.masks_without_film == 1


def test_a_damaged_workbook_is_named(two):
    (two / "A.metadata.xlsx").write_bytes(b"no workbook")
    assert f"{two / 'A.metadata.xlsx'}: must be a workbook" in refused(two)


def test_what_phantom_writes_is_read_whole(tmp_path):
    write_dataset(tmp_path / "d", films=12, size=64)
    dataset = scan([tmp_path / "d"])
    assert len(dataset.films) == 12
    assert all((tmp_path / "d" / film.mask).exists() and film.patient_id and film.source for film in dataset.films)


def test_masks_are_never_films(tmp_path):
    touch(tmp_path, "A/1.png", "A/1_mask.png", "A/1_mask_mask.png", "A/9_mask.png", "A/Mask/1.png", "A/mask/sub/1.png")
    dataset = scan([touch(tmp_path, "B/2.png", "B/2_MASK.png", "masks/C/1.png")])
    assert labelled(dataset) == {"A/1.png": "A", "B/2.png": "B"}
    assert [film.mask for film in dataset.films] == ["A/Mask/1.png", "B/2_MASK.png"]
    assert dataset.masks_without_film == 3


@pytest.mark.parametrize("wrapper", ["radiography", "a/b/c"])
def test_wrapper_folders_are_looked_through(tmp_path, wrapper):
    touch(tmp_path, f"{wrapper}/A/images/1.png", f"{wrapper}/B/images/2.png")
    dataset = scan([tmp_path])
    assert labelled(dataset) == {"A/images/1.png": "A", "B/images/2.png": "B"}
    assert dataset.collections == {tmp_path.name: tmp_path / wrapper}


def test_sides_that_the_dataset_brings_are_kept(tmp_path):
    touch(tmp_path, *(f"{side}/{label}/{side}.png" for side in ("train", "val", "test") for label in "AB"))
    dataset = scan([tmp_path])
    assert {(f.path.split("/")[0], f.label, f.split) for f in dataset.films} == {
        (side, label, {"val": "validation"}.get(side, side)) for side in ("train", "val", "test") for label in "AB"
    }
    assert {film.split for film in scan([tmp_path], without_splits=True).films} == {None}


def test_other_names_of_the_sides_and_no_validation(tmp_path):
    touch(tmp_path, "Training/A/images/1.png", "Training/B/images/2.png", "Testing/A/images/3.png")
    assert [film.split for film in scan([tmp_path]).films] == ["test", "train", "train"]


def test_one_side_alone_is_a_wrapper(tmp_path):
    dataset = scan([touch(tmp_path, "train/A/1.png", "train/B/2.png")])
    assert [(film.label, film.split) for film in dataset.films] == [("A", None), ("B", None)]


def test_sides_beside_classes_are_ambiguous(tmp_path):
    touch(tmp_path, "train/A/1.png", "test/A/2.png", "B/3.png")
    assert "found both: train and B" in refused(tmp_path)


def test_hidden_files_are_passed_over_and_others_listed(two):
    touch(two, ".hidden/1.png", "A/.1.png", "A/.x/1.png", "A/Thumbs.db", "__MACOSX/A/1.png", "A/__MACOSX/1.png")
    touch(two, "A/notes.txt", "loose.png", "A/archive")
    dataset = scan([two])
    assert len(dataset.films) == 3
    assert dataset.left_out == (
        ("data", "A/archive", "not an image by its name"),
        ("data", "A/notes.txt", "not an image by its name"),
        ("data", "loose.png", "lies in no class folder"),
    )


def test_dicom_without_a_suffix_is_a_film_and_a_pipe_does_not_block(two):
    (two / "A" / "IM0001").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(two / "A" / "pipe")
    assert "A/IM0001" in labelled(scan([two]))


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path):
    elsewhere = touch(tmp_path / "elsewhere", "1.png", "2.png")
    data = touch(tmp_path / "data", "A/0.png", "C/5.png")
    (data / "B").symlink_to(elsewhere)
    (data / "C" / "images").symlink_to(elsewhere)
    (data / "A" / "up").symlink_to(data)
    (data / "A" / "here").symlink_to(data / "A")
    (tmp_path / "link").symlink_to(data)
    dataset = scan([tmp_path / "link"])
    assert labelled(dataset) == {
        "A/0.png": "A",
        "B/1.png": "B",
        "B/2.png": "B",
        "C/5.png": "C",
        "C/images/1.png": "C",
        "C/images/2.png": "C",
    }
    assert list(dataset.collections) == ["link"]


def test_names_that_are_not_utf8_are_left_out(two):
    touch(two, b"A/caf\xe9.png", b"\xff\xfe/1.png", b"loose-\xe9.png")
    dataset = scan([two])
    assert len(dataset.films) == 3
    assert sorted(reason for _, _, reason in dataset.left_out) == [
        "its name is not UTF-8",
        "its name is not UTF-8",
        "lies in no class folder",
    ]
    for _, path, _ in dataset.left_out:
        path.encode()


def test_a_root_that_is_not_utf8_is_refused(tmp_path):
    root = touch(tmp_path, b"\xff/A/1.png") / os.fsdecode(b"\xff")
    refused(root).encode()


WEIRD = ["Viral Pneumonia", "<b>bold", 'it\'s "so"', "肺炎", "a,b;c", "[red]", "-x", "100%", "a.b"]


def test_classes_may_have_any_name(tmp_path):
    dataset = scan([touch(tmp_path, *(f"{name}/1.png" for name in WEIRD))])
    assert set(dataset.labels) == set(WEIRD)


@pytest.mark.parametrize(
    "make", [lambda root: None, lambda root: touch(root, "A/1.png"), lambda root: touch(root, "1.png")]
)
def test_fewer_than_two_classes_are_refused(tmp_path, make):
    data = tmp_path / "data"
    data.mkdir()
    make(data)
    text = refused(data)
    assert text.startswith(f"{data}: must hold films of at least two classes, found ")
    assert "expected DATA/<class>/*" in text


def test_what_is_no_folder_or_table_is_refused(tmp_path):
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder or table"
    touch(tmp_path, "a.zip", "a.png")
    assert "download --from-zip" in refused(tmp_path / "a.zip")
    assert "found another file" in refused(tmp_path / "a.png")
    with pytest.raises(UserError, match="at least one folder or table"):
        scan([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(two):
    (two / "B").chmod(0)
    assert f"{two / 'B'}: cannot be read (Permission denied)" in refused(two)
    (two / "B").chmod(0o700)


def test_the_order_is_that_of_the_paths_whatever_the_order_of_writing(tmp_path):
    touch(tmp_path / "x", "B/2.png", "A/9.png", "A/10.png", "A/a/1.png")
    assert [film.path for film in scan([tmp_path / "x"]).films] == ["A/10.png", "A/9.png", "A/a/1.png", "B/2.png"]


# ------------------------------------------------------------------------------------------------------- metadata.csv


def test_metadata_says_more_and_goes_before_the_folder(two):
    (two / "metadata.csv").write_text(
        "path,label,patient_id,source,split,mask,age\n"
        "A/1.png,C,p1,here,train,m/1.png,3\n"
        ".\\A\\2.png,,p2,,Val,,\n"
        "B/3.png,,,there,test,,\n"
        "B/4.png,A,,,,,\n"
    )
    dataset = scan([two])
    rows = [(f.path, f.label, f.patient_id, f.source, f.split, f.mask) for f in dataset.films]
    assert rows == [
        ("A/1.png", "C", "p1", "here", "train", "m/1.png"),
        ("A/2.png", "A", "p2", None, "validation", None),
        ("B/3.png", "B", None, "there", "test", None),
    ]
    assert dataset.notes == (f"{two / 'metadata.csv'}: 1 of its 4 rows name files that are not there, first B/4.png",)


def test_metadata_above_a_wrapper_folder_counts(tmp_path):
    touch(tmp_path, "films/A/1.png", "films/B/2.png")
    (tmp_path / "metadata.csv").write_text("path,patient_id\nfilms/A/1.png,p1\nfilms/B/2.png,p2\n")
    dataset = scan([tmp_path])
    assert [film.patient_id for film in dataset.films] == ["p1", "p2"]
    assert dataset.notes == ()


def test_metadata_gives_the_labels_of_one_folder(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "masks/1.png")
    (tmp_path / "metadata.csv").write_text("path,label\nimages/1.png,A\nimages/2.png,B\n")
    assert labelled(scan([tmp_path])) == {"images/1.png": "A", "images/2.png": "B"}


@pytest.mark.parametrize(
    "text",
    [
        "path;source;patient_id\nA/1.png;Köln, Süd;p1\n",
        "path\tsource\tpatient_id\nA/1.png\tKöln, Süd\tp1\n",
        'Path, SOURCE ,Patient_ID\n A/1.png ,"Köln, Süd",p1\n',
    ],
)
def test_metadata_is_read_as_spreadsheets_write_it(two, text):
    (two / "metadata.csv").write_text(text, encoding="utf-8-sig")
    dataset = scan([two])
    assert (dataset.films[0].source, dataset.films[0].patient_id) == ("Köln, Süd", "p1")
    assert (dataset.notes, dataset.unused) == ((), ())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("image,mask\n1,2\n", "it must have a column 'path', found image, mask"),
        ("", "it must have a column 'path', found no columns"),
        (
            "path,hospital\nA/1.png,H1\n",
            "beside 'path' it must have a column of label, patient_id, study_id, origin, source, mask, split, "
            "found path, hospital",
        ),
        ("path,source\n", "it must name films by their path below {two}; it has no rows"),
        (
            "path,source\nC/1.png,H1\nC/2.png,H1\n",
            "it must name films by their path below {two}; none of its 2 rows does, first C/1.png",
        ),
    ],
)
def test_metadata_that_says_nothing_of_the_films_is_not_used_and_named(two, text, why):
    (two / "metadata.csv").write_text(text)
    dataset = scan([two])
    assert dataset.unused == (f"{two / 'metadata.csv'} was not used: {why.format(two=two)}",)
    assert {film.source for film in dataset.films} == {None}


def test_metadata_that_contradicts_itself_or_cannot_be_read_is_refused(two):
    file = two / "metadata.csv"
    file.write_text("path,label\nA/1.png,A\nA/1.png,B\n")
    assert "found two that differ for A/1.png" in refused(two)
    file.write_text("path,split\nA/1.png,later\n")
    assert "split must be one of train, validation, test, found 'later'" in refused(two)
    file.write_bytes("path,source\nA/1.png,Zürich\n".encode("latin-1"))
    assert f"{file}: must be a CSV table in UTF-8" in refused(two)


def test_a_split_for_some_films_only_is_refused_unless_it_is_to_be_forgotten(two):
    (two / "metadata.csv").write_text("path,split\nA/1.png,train\n")
    assert "must be given for every film or for none, found 1 of 3, not A/2.png" in refused(two)
    assert {film.split for film in scan([two], without_splits=True).films} == {None}


# ------------------------------------------------------------------------------------------------------------- tables


def table(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(text, encoding=encoding)
    return folder / "table.csv"


def test_a_table_with_every_column(tmp_path):
    file = table(
        tmp_path,
        "path,label,patient_id,source,split,mask\nx/1.png,A,p1,s1,train,m.png\n./x\\2.png,B,,,valid,\n",
        encoding="utf-8-sig",
    )
    dataset = scan([file])
    rows = [(f.path, f.label, f.patient_id, f.source, f.split, f.mask) for f in dataset.films]
    assert rows == [
        ("x/1.png", "A", "p1", "s1", "train", "m.png"),
        ("x/2.png", "B", None, None, "validation", None),
    ]
    assert dataset.file_of(dataset.films[0]) == tmp_path / "x" / "1.png"
    assert dataset.collections == {"table": tmp_path}


def test_paths_of_a_table_may_be_absolute_or_climb_out(tmp_path):
    films = touch(tmp_path / "films", "1.png", "2.png")
    dataset = scan([table(tmp_path / "t", f"path,label\n{films / '1.png'},A\n../films/2.png,B\n")])
    assert labelled(dataset) == {"../films/1.png": "A", "../films/2.png": "B"}
    assert all(dataset.file_of(film).exists() for film in dataset.films)


def test_a_parquet_table(tmp_path):
    frame = pd.DataFrame({"Path": ["1.png", "2.png", "3.png"], "label": ["A", "B", None], "Patient_ID": [7, 8, None]})
    frame.astype({"Patient_ID": "Int64"}).to_parquet(tmp_path / "t.parquet")
    dataset = scan([tmp_path / "t.parquet"])
    assert [(f.path, f.label, f.patient_id) for f in dataset.films] == [("1.png", "A", "7"), ("2.png", "B", "8")]
    assert dataset.left_out == (("t", "3.png", "the table gives no label"),)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"\x00" * 100])
def test_a_damaged_parquet_table_is_named(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    assert f"{tmp_path / 't.parquet'}: must be a Parquet table" in refused(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "must have a column 'path', found no columns"),
        ("file,label\n1.png,A\n", "must have a column 'path', found file, label"),
        ("path\n1.png\n", "must have a column 'label', found path"),
        ("path|label\n1.png|A\n", "must have a column 'path', found path|label"),
        ("path,Path,label\n1.png,1.png,A\n", "must name a column once, found 'path' 2 times"),
        ("path;label\n1.png;A\n", "at least two classes, found one, 'A'"),
        ("path,label\n1.png,A\n1.png,B\n", "a film must have one label, found 'A' and 'B' for 1.png"),
        ("path,label\n1.png,A\n", "at least two classes, found one, 'A'"),
        ("path,label,split\n1.png,A,x\n", "split must be one of"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, found):
    assert found in refused(table(tmp_path, text))


def test_a_table_with_semicolons_and_capitals(tmp_path):
    dataset = scan([table(tmp_path, "Path;Label;Patient_ID\n1.png;A, mild;p1\n2.png;B;p2\n")])
    assert labelled(dataset) == {"1.png": "A, mild", "2.png": "B"}
    assert [film.patient_id for film in dataset.films] == ["p1", "p2"]


def test_rows_without_path_or_label_are_left_out_and_repeats_noted(tmp_path):
    file = table(tmp_path, "path,label\n1.png,A\n,B\n2.png,\n1.png,A\n3.png,B\n4.png\n")
    dataset = scan([file])
    assert labelled(dataset) == {"1.png": "A", "3.png": "B"}
    assert dataset.left_out == (
        ("table", "", "the table's row has no path"),
        ("table", "2.png", "the table gives no label"),
        ("table", "4.png", "the table gives no label"),
    )
    assert dataset.notes == (f"{file}: 1 of its rows name a film again; the first row counts",)


def test_a_table_that_is_not_utf8_is_refused(tmp_path):
    assert "must be a CSV table in UTF-8" in refused(table(tmp_path, "path,label\n1.png,Größe\n", encoding="latin-1"))


# ------------------------------------------------------------------------------------------------------------ mapping


def test_classes_are_renamed_merged_and_left_out(tmp_path):
    touch(tmp_path, "A/1.png", "B/2.png", "C/3.png", "D/4.png")
    mapping = parse_mapping(["A=sick", " B = sick ", "C="])
    assert labelled(scan([tmp_path], mapping=mapping)) == {"A/1.png": "sick", "B/2.png": "sick", "D/4.png": "D"}
    assert "at least two classes, found one, 'x'" in refused(tmp_path, mapping=dict.fromkeys("ABCD", "x"))
    assert "--map: 'E' must be a class of the data, found A, B, C, D" in refused(tmp_path, mapping={"E": "x"})


def test_a_mapping_speaks_of_the_label_that_the_metadata_gives(two):
    (two / "metadata.csv").write_text("path,label\nA/1.png,C\n")
    assert labelled(scan([two], mapping={"C": "D"}))["A/1.png"] == "D"


@pytest.mark.parametrize("pairs", [["A"], ["=A"], ["A=b", "A=c"]])
def test_a_mapping_that_is_none_is_refused(pairs):
    with pytest.raises(UserError, match="--map: must be FOLDER=LABEL"):
        parse_mapping(pairs)


# -------------------------------------------------------------------------------------------------------- collections


def test_the_collection_is_the_source_of_films_that_say_nothing_else(tmp_path):
    one = touch(tmp_path / "one", "A/1.png")
    two = touch(tmp_path / "two", "B/1.png", "B/2.png")
    (two / "metadata.csv").write_text("path,source\nB/2.png,clinic\n")
    dataset = scan([two, one])
    rows = [(film.collection, film.path, film.source) for film in dataset.films]
    assert rows == [("one", "A/1.png", "one"), ("two", "B/1.png", "two"), ("two", "B/2.png", "clinic")]


def test_collections_of_one_name_are_told_apart(tmp_path):
    one = touch(tmp_path / "x" / "data", "A/1.png")
    two = touch(tmp_path / "y" / "data", "B/1.png")
    dataset = scan([one, two])
    assert dataset.collections == {"data": one, "data-2": two}
    assert [dataset.file_of(film) for film in dataset.films] == [one / "A/1.png", two / "B/1.png"]


def test_one_collection_named_twice_is_refused(two):
    assert "must be named once, found it twice" in refused(two, two / "A" / "..")


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://www.sirm.org/en/category/x", "sirm.org"),
        ("https://github.com/ieee8023/covid-chestxray-dataset/tree", "github.com/ieee8023/covid-chestxray-dataset"),
        ("https://kaggle.com/c/rsna/data", "kaggle.com/c/rsna"),
        ("no url", "no url"),
        ("http://[x", "http://[x"),
    ],
)
def test_source_of_url(url, source):
    assert source_of_url(url) == source
