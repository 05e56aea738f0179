#!/bin/bash
# Step 5 of docs/operations.md, on a further server: joining, with the token that s1 has put into the mailbox.
set -euo pipefail

# Passwords and tokens are never arguments, which everybody on the machine sees.
mailbox() { PGPASSWORD=$PASSWORD psql -v ON_ERROR_STOP=1 -qAt "postgresql://godwit@$DATABASE/handover" <<<"$1"; }

if [ ! -e /etc/godwit/godwit.toml ]; then
    deadline=$((SECONDS + 1800)) # where machines are made side by side, s1 may need a while
    until token=$(mailbox "SELECT token FROM tokens WHERE server = '$SERVER'" 2>/dev/null) && [ -n "$token" ]; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "no token for $SERVER: vagrant provision s1" >&2; exit 1; }
        sleep 1
    done
    GODWIT_TOKEN=$token godwit join --manager "$MANAGER" --server "$SERVER" --address "$ADDRESS" \
        --volume /srv/godwit --mountpoint /mnt/godwit
    mailbox "DELETE FROM tokens WHERE server = '$SERVER'"
fi
godwit units --install
systemctl enable --now godwit.target
mountpoint -q /mnt/godwit
