"""Whether a Parquet file is, row for row and field for field, what verl's own preparation makes of GSM8K's JSON lines.

    python check_verl_data.py TRAIN.jsonl TRAIN.parquet SPLIT
"""

import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq

lines, written, split = sys.argv[1:]
text = pa.string()
schema = pa.schema({
    "data_source": text,
    "prompt": pa.list_(pa.struct({"role": text, "content": text})),
    "ability": text,
    "reward_model": pa.struct({"style": text, "ground_truth": text}),
    "extra_info": pa.struct({"split": text, "index": pa.int64(), "answer": text, "question": text}),
})


def row(index, problem):
    question, answer = problem["question"], problem["answer"]
    content = question + ' Let\'s think step by step and output the final answer after "####".'
    number = re.search(r"#### (-?[0-9.,]+)", answer).group(1).replace(",", "")
    return {
        "data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": content}], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": number},
        "extra_info": {"split": split, "index": index, "answer": answer, "question": question},
    }


with open(lines, encoding="utf-8") as file:
    expected = [row(index, json.loads(line)) for index, line in enumerate(file)]
table = pq.read_table(written)
assert table.schema.equals(schema), table.schema
assert table.to_pylist() == expected
print(f"{len(expected)} rows")
