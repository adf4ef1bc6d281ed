# The commands of the course.  Each first sets up what it needs in .venv; the second time it finds it there.
#
# PRESET=smoke        seconds a notebook; laptop (the default), gpu, paper
# PYTHON=python3.12   the interpreter that .venv is made with, 3.11 or newer
# CONSTRAINTS=        install the newest packages that pyproject.toml admits, not the tested set of constraints.txt
#
# Without make, or on Windows: README.md has the same in three lines of pip and `python -m minica`.

PYTHON ?= python3
PRESET ?= laptop
CONSTRAINTS ?= constraints.txt
PYTEST_FLAGS ?= -n logical --maxprocesses 4 --dist loadgroup
RUN := .venv/bin/python -m

.PHONY: help quickstart course publish lab student records explorer pages test browser clean

help:
	@echo "make quickstart   run the first notebook: a real network adapted to real photographs"
	@echo "make course       run all notebooks into build/course (PRESET=smoke: in seconds each)"
	@echo "make lab          open copies of the notebooks (my_notebooks) in JupyterLab"
	@echo "make student      copy the notebooks into build/student without solutions and outputs"
	@echo "make publish      run all notebooks and write what they show into the committed ones"
	@echo "make records      compute again what the notebooks show as recorded (hours; it resumes)"
	@echo "make explorer     write again what the page docs/index.html shows, after new records"
	@echo "make pages        write again the notebooks as pages, docs/notebooks, after they were published"
	@echo "make test         lint and run all tests"
	@echo "make clean        delete what runs left behind; .venv stays"

quickstart: .venv/ready-course
	@$(RUN) minica course 00_quickstart --preset "$(PRESET)"

course: .venv/ready-course
	@$(RUN) minica course --preset "$(PRESET)"

publish: .venv/ready-course
	@$(RUN) minica publish

lab: .venv/ready-course
	@$(RUN) minica lab

student: .venv/ready-course
	@$(RUN) minica student

records: .venv/ready-course
	@$(RUN) minica records

explorer: .venv/ready-course
	@$(RUN) minica explorer

pages: .venv/ready-course
	@$(RUN) minica pages

test: .venv/ready-test browser
	@$(RUN) ruff check .
	@$(RUN) pytest $(PYTEST_FLAGS)

# The browser tests drive the system's Chromium.  Where it cannot be installed here, they fail with the same line.
browser:
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name >/dev/null || exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then as=; else as='sudo -n'; fi; \
	{ command -v apt-get >/dev/null && $$as true && $$as apt-get update && \
	    $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y chromium; } || \
	echo 'There is no Chromium for the browser tests: sudo apt-get install -y chromium'

clean:
	rm -rf build minica.egg-info .pytest_cache .ruff_cache
	find minica tests notebooks data_scripts \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp of an extra is written when its installation is complete, so an interrupted one is taken up again.
.venv/ready-%: .venv/created pyproject.toml $(CONSTRAINTS)
	$(RUN) pip install --disable-pip-version-check --editable ".[$*]" $(if $(CONSTRAINTS),--constraint "$(CONSTRAINTS)") || { \
	    echo 'The packages could not be installed; the reason is above.  If it is a pinned version that does not exist for'; \
	    echo 'this Python or this system, make the same again with CONSTRAINTS= (nothing after the equals sign).'; exit 1; }
	@touch $@

.venv/created:
	@command -v "$(PYTHON)" >/dev/null || { echo 'There is no "$(PYTHON)" here; name a Python of 3.11 or newer with PYTHON=...'; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "minica needs Python 3.11 or newer, and \
	$(PYTHON) is " + sys.version.split()[0] + "; name another with PYTHON=...")'
	"$(PYTHON)" -m venv --clear .venv
	@touch $@
