#!/usr/bin/env bash
# A PostgreSQL server for Dagster's runs and events, for one machine: its files are in $DAGSTER_HOME/postgres, and it
# listens on a Unix socket there and on no network. Needs Debian's package `postgresql`.
#
#     docs/examples/postgres.sh start     # makes the database the first time, and prints its URL
#     docs/examples/postgres.sh stop
set -euo pipefail

home=${DAGSTER_HOME:?set DAGSTER_HOME, such as to "$PWD/.dagster"}/postgres
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)

# PostgreSQL refuses to run as root
as_owner() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

case ${1:-} in
start)
    if [ ! -f "$home/data/PG_VERSION" ]; then
        mkdir -p "$home"
        if [ "$(id -u)" = 0 ]; then chown postgres "$home"; fi
        chmod 700 "$home"
        as_owner "$bin/initdb" --auth=peer --username=dagster --encoding=UTF8 -D "$home/data" >/dev/null
        if [ "$(id -u)" = 0 ]; then owner=postgres; else owner=$(id -un); fi
        # who may connect: the account that runs the server, and root, as the database user dagster
        printf 'local all dagster peer map=dagster\n' | as_owner tee "$home/data/pg_hba.conf" >/dev/null
        printf 'dagster %s dagster\ndagster root dagster\n' "$owner" | as_owner tee "$home/data/pg_ident.conf" >/dev/null
    fi
    as_owner "$bin/pg_ctl" -D "$home/data" status >/dev/null || as_owner "$bin/pg_ctl" -D "$home/data" \
        -l "$home/server.log" -w -o "-c listen_addresses='' -c unix_socket_directories='$home' -c max_connections=200" start >/dev/null
    as_owner "$bin/psql" -h "$home" -U dagster -d postgres -tAc "SELECT 1 FROM pg_database WHERE datname = 'dagster'" |
        grep -q 1 || as_owner "$bin/createdb" -h "$home" -U dagster dagster
    echo "postgresql+psycopg2://dagster@/dagster?host=$home"
    ;;
stop)
    as_owner "$bin/pg_ctl" -D "$home/data" -m fast -w stop >/dev/null
    ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
