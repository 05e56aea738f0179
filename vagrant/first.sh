#!/bin/bash
# Steps 3 and 4 of docs/operations.md, on s1: the first server, and a join token for each of $OTHERS.
set -euo pipefail

# Passwords and tokens are never arguments, which everybody on the machine sees.
mailbox() { PGPASSWORD=$PASSWORD psql -v ON_ERROR_STOP=1 -qAt "postgresql://godwit@$DATABASE/handover" <<<"$1"; }

wait_for() { # what it is, seconds, command
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "waited too long: $what" >&2; exit 1; }
        sleep 1
    done
}

wait_for "the database answers" 900 mailbox "SELECT 1 FROM tokens LIMIT 1"

if [ ! -e /etc/godwit/godwit.toml ]; then
    godwit init --cluster vagrant --server "$SERVER" --address "$ADDRESS" --volume /srv/godwit --mountpoint /mnt/godwit \
        --database-file <(echo "postgresql+psycopg://godwit:$PASSWORD@$DATABASE/godwit")
fi
godwit units --install
systemctl enable --now godwit.target
mountpoint -q /mnt/godwit

wait_for "a manager answers" 120 godwit status
for other in $OTHERS; do
    if godwit servers show "$other" >/dev/null 2>&1; then
        continue # it is a member already
    fi
    token=$(godwit servers add "$other" --candidate --expires 86400 --json | jq -er .token)
    mailbox "INSERT INTO tokens VALUES ('$other', '$token') ON CONFLICT (server) DO UPDATE SET token = excluded.token"
done
