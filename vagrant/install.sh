#!/bin/bash
# Step 1 of docs/operations.md, on every storage server: Godwit, from the checkout at $SOURCE.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends \
    python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev fuse3 postgresql-client jq

python3 -m venv /opt/godwit
/opt/godwit/bin/pip install -q --disable-pip-version-check "${SOURCE}[postgres]"
ln -sf /opt/godwit/bin/godwit /usr/local/bin/godwit
godwit --help >/dev/null
