"""Sums that Spark finds, as a process of its own in the environment target/spark-venv.

Reads one JSON object a line: `command`, Python lines of which the last is an expression with a data frame of `spark`, and
`columns`. Answers each with one line: the sums of these columns, in their order.
"""

import json
import sys

from pyspark.sql import SparkSession

SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "512m",
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:MaxMetaspaceSize=256m",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
}


def main() -> None:
    builder = SparkSession.builder.master("local[1]")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    for line in sys.stdin:
        asked = json.loads(line)
        *lines, last = asked["command"].splitlines()
        names = {"spark": spark}
        exec("\n".join(lines), names)
        frame = eval(last, names)
        sums = frame.selectExpr(*(f"sum(cast(`{column}` as decimal(38, 0)))" for column in asked["columns"])).collect()[0]
        print(json.dumps([int(total) for total in sums]), flush=True)


main()
