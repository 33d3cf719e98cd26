# make demo: the whole path on the embedded corpus, then saved/demo/report.html
# make test: lint and all tests, those that last longest (e2e) first
.PHONY: demo test clean

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO := saved/demo

demo: $(INSTALLED)
	$(PY) -m pipeline.synthetic $(DEMO)/corpus
	$(PY) precompute_visual.py --root $(DEMO)/corpus --out $(DEMO)/mouths.h5
	$(PY) train.py --config-name demo trainer.save_dir=$(DEMO) datasets.root=$(DEMO)/corpus cache=$(DEMO)/mouths.h5
	$(PY) inference.py root=$(DEMO)/corpus part=test save_path=$(DEMO)/separated run_dir=$(DEMO)/run metrics.inference=[]
	$(PY) inference.py root=$(DEMO)/corpus part=test save_path=$(DEMO)/swapped run_dir=$(DEMO)/run inferencer.lips=swapped metrics.inference=[]
	$(PY) calc_metrics.py pred=$(DEMO)/separated truth=$(DEMO)/corpus/audio/test groups=$(DEMO)/corpus/utterances.csv
	$(PY) calc_metrics.py pred=$(DEMO)/swapped truth=$(DEMO)/corpus/audio/test > /dev/null
	$(PY) inference.py root=$(DEMO)/corpus part=test save_path=$(DEMO)/shipped checkpoint=weights/small.safetensors metrics.inference=[]
	$(PY) calc_metrics.py pred=$(DEMO)/shipped truth=$(DEMO)/corpus/audio/test only=[SI-SNR]
	$(PY) -m src.logger.report --pred $(DEMO)/separated --root $(DEMO)/corpus \
	  --metrics $(DEMO)/separated/metrics.csv --summary $(DEMO)/separated/summary.json \
	  --swapped $(DEMO)/swapped/summary.json --require-si-snri 3 --out $(DEMO)/report.html

test: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The first of these interpreters that starts and is 3.10 to 3.12.
$(INSTALLED): requirements.txt
	@for candidate in $(PYTHON) python3 python3.12 python3.11 python3.10 python; do \
	  if $$candidate -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	    found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Python 3.10, 3.11 or 3.12 is needed: install one, or make PYTHON=/path/to/python"; exit 1; fi; \
	echo "Making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) saved
