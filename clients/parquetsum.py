"""Prints the sum of a column, read from the Parquet files: parquetsum.py COLUMN"""

import connection
import sums

if __name__ == "__main__":
    connection.run(lambda: sums.print_column_sum("parquet"))
