"""Postgres: connections, queries, migrations, and what its errors mean."""

import orjson
from psycopg.types.json import set_json_loads

# An invoice line has a JSON detail, and a month has sixty thousand lines.
set_json_loads(orjson.loads)
