"""What a run sees of its data: places, columns, samples, drift, and who reads and writes what."""

from __future__ import annotations

import pytest

import tau as module


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("in/orders.csv", "/data/in/orders.csv"),
        ("./in/../*.csv", "/data/*.csv"),
        ("/abs/x.csv", "/abs/x.csv"),
        ("file:///a%20b.csv", "/a b.csv"),
        ("file://localhost/x.csv", "/x.csv"),
        ("sqlite:///shop.db", "sqlite:////data/shop.db"),
        ("sqlite:////abs/shop.db?timeout=5", "sqlite:////abs/shop.db"),
        ("sqlite+pysqlite:///shop.db", "sqlite:////data/shop.db"),
        ("duckdb:///:memory:", "duckdb:///:memory:"),
        ("duckdb:///w.duckdb?motherduck_token=t0ken", "duckdb:////data/w.duckdb"),
        ("postgres://tau:pa55@DB/shop", "postgresql://db:5432/shop"),
        ("postgresql+psycopg://tau:p/5?5@db:5433/shop?sslpassword=pa55", "postgresql://db:5433/shop"),
        ("postgresql:///shop?host=/tmp/pg&port=5433", "postgresql://%2ftmp%2fpg:5433/shop"),
        ("postgresql://[::1]/shop", "postgresql://[::1]:5432/shop"),
        ("mysql://db/shop", "mysql://db:3306/shop"),
        ("snowflake://tau:pa55@account/shop/public?warehouse=w", "snowflake://account/shop/public"),
        ("https://tau:pa55@Example.com:443/a/@me?token=pa55#x", "https://example.com/a/@me"),
        ("http://example.com:8080", "http://example.com:8080/"),
        ("s3://key:pa55@bucket/in/*.parquet", "s3://bucket/in/*.parquet"),
    ],
)
def test_a_place_has_one_name_without_secrets(written: str, name: str) -> None:
    assert module.place_name(written, "/data") == name
    assert module.place_name(name, "/elsewhere") == name
