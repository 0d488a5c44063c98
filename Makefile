# `make demo` and `make test` set up .venv by themselves. PYTHON may be any of 3.11 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo

.PHONY: demo test lint clean

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "jaxface needs Python 3.11 or newer, this is %d.%d; say make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# Faces, a small VAE, its evaluation and its pictures; run again, it goes on where it was.
demo: .venv/installed
	$(BIN)/jaxface prepare synthetic_faces --size 48 --aligned --count 20000 --data-dir $(DEMO)/data
	$(BIN)/jaxface train --config experiments/vae.py:mask_ssim_l2,demo --data-dir $(DEMO)/data --workdir $(DEMO)/run
	$(BIN)/jaxface evaluate --workdir $(DEMO)/run --out $(DEMO)/evaluation
	$(BIN)/jaxface sample --workdir $(DEMO)/run --count 36 --out $(DEMO)/samples.png
	@echo
	@echo 'Look at:'
	@echo '  $(DEMO)/evaluation/comparison.png   faces the network never saw, and their reconstructions'
	@echo '  $(DEMO)/samples.png                 faces it invented'
	@echo '  $(DEMO)/run/pictures/               inputs, masks and composites over training'
	@echo '  $(DEMO)/run/losses.png              the loss and its terms'

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .

clean:
	rm -rf .venv build *.egg-info
