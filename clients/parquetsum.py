"""Prints the sum of a column, read from the Parquet files: parquetsum.py COLUMN"""

import connection

if __name__ == "__main__":
    connection.run(lambda: connection.print_column_sum("parquet"))
