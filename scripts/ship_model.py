"""Put a bundle's int8 model into the package: python scripts/ship_model.py BUNDLE. What was there is replaced.

The package takes what prediction needs and no more: the graph in int8, configuration, golden films, card. What a bundle
keeps of its own films stays behind: a coarse picture of each could be made of it, and the films are not ours.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from vgg16_xray.bundle.classify import check
from vgg16_xray.bundle.format import BundleDir, read_bundle_config, verify
from vgg16_xray.files import replace_folder, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    bundle, packaged = BundleDir(parser.parse_args().bundle), BundleDir.packaged()
    config = read_bundle_config(bundle)
    written = BundleDir(packaged.path.with_name(".model.tmp"))
    shutil.rmtree(written.path, ignore_errors=True)
    written.path.mkdir()
    shipped = [bundle.int8, bundle.preprocessor, bundle.golden, bundle.card]
    for file in shipped:
        verify(bundle, config, file)
        shutil.copyfile(file, written.path / file.name)
    kept = {file.name: config.sha256[file.name] for file in shipped}
    write_json(written.config, replace(config, sha256=kept).as_dict())
    found = check(written.path)
    replace_folder(written.path, packaged.path)
    print(found, sum(file.stat().st_size for file in packaged.path.iterdir()), "bytes")


if __name__ == "__main__":
    main()
