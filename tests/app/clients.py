"""Programs that other interpreters run against a server: Inspect AI and garak, each as a user would start it."""

INSPECT = """
import sys
from inspect_ai import Task, eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
url, name, folder = sys.argv[1:4]
model = get_model(f"openai-api/cutaway/{name}", base_url=url, api_key="any")
task = Task(
    dataset=[Sample(input="the cat", target="a"), Sample(input="a dog", target="e")],
    solver=generate(), scorer=includes(),
    config=GenerateConfig(max_tokens=20, seed=7, temperature=1.0, logprobs=True, top_logprobs=2),
)
(log,) = evaluate(task, model=model, log_dir=folder, display="none")
assert log.status == "success", log.error
for sample in log.samples:
    choice = sample.output.choices[0]
    print(repr(choice.message.text), len(choice.logprobs.content), sample.output.usage.output_tokens)
"""

GARAK = """
import json, sys
from pathlib import Path
options = {"openai": {"OpenAICompatible": {"uri": sys.argv[1], "max_tokens": 20, "suppressed_params": ["stop"]}}}
Path("options.json").write_text(json.dumps(options))
from garak import cli
cli.main([
    "--target_type", "openai.OpenAICompatible", "--target_name", sys.argv[2],
    "--generator_option_file", "options.json", "--probes", "test.Blank", "--generations", "3",
    "--report_prefix", str(Path("report").absolute()), "--skip_unknown",
])
"""
