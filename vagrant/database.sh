#!/bin/bash
# Step 2 of docs/operations.md, on the database machine: PostgreSQL at $DATABASE, for the servers of $NETWORK.
#
# A second database, `handover`, takes join tokens from s1 to the machines that join: a mailbox that only this setup needs.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends postgresql

as_postgres() { runuser -u postgres -- psql -v ON_ERROR_STOP=1 -qAt "$@"; }

if [ -z "$(as_postgres -c "SELECT 1 FROM pg_roles WHERE rolname = 'godwit'")" ]; then
    as_postgres -c "CREATE ROLE godwit LOGIN"
fi
# Not as an argument, which everybody on the machine sees.
as_postgres <<<"ALTER ROLE godwit PASSWORD '$PASSWORD'"
for name in godwit handover; do
    if [ -z "$(as_postgres -c "SELECT 1 FROM pg_database WHERE datname = '$name'")" ]; then
        as_postgres -c "CREATE DATABASE $name OWNER godwit TEMPLATE template0 ENCODING UTF8"
    fi
done
as_postgres -d handover -c "CREATE TABLE IF NOT EXISTS tokens (server text PRIMARY KEY, token text NOT NULL)" \
    -c "ALTER TABLE tokens OWNER TO godwit"

configuration=$(as_postgres -c "SHOW config_file")
folder=$(dirname "$configuration")
mkdir -p "$folder/conf.d"
printf "listen_addresses = '%s'\n" "$DATABASE" >"$folder/conf.d/godwit.conf"
for name in godwit handover; do
    line="host $name godwit $NETWORK scram-sha-256"
    grep -qxF "$line" "$folder/pg_hba.conf" || printf '%s\n' "$line" >>"$folder/pg_hba.conf"
done
systemctl restart postgresql
