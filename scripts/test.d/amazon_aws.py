"""Installs the collection amazon.aws, without its own tests, out of the package `ansible`.

    amazon_aws.py WHEEL
"""

import sys
import sysconfig
import zipfile

COLLECTION = "ansible_collections/amazon/aws/"

with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [name for name in wheel.namelist() if name.startswith(COLLECTION)]
    wheel.extractall(sysconfig.get_path("purelib"), [name for name in names if not name.startswith(f"{COLLECTION}tests/")])
