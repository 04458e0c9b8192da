# `make figures tables` makes every picture and every table of the documents again, of what is in this repository (docs/figures,
# benchmarks/results). `make measure PICTURES=FOLDER` measures the speeds anew, on a machine that does nothing else: ten minutes,
# after a quarter of an hour in which `make measured-files PICTURES=FOLDER` writes what is measured.
PYTHON ?= python3
FIGURES ?= docs/figures
FILES ?= build/speed
MNV3 = $(PYTHON) -m mnv3 show

figures:
	$(MNV3) arch mnv3_small -o $(FIGURES)/arch.png
	$(MNV3) features docs/ship.jpg --model mnv3_small_cifar -o $(FIGURES)/features.png
	$(MNV3) why docs/ship.jpg --model mnv3_small_cifar -o $(FIGURES)/why.png
	$(MNV3) run weights/mnv3_small_cifar.cifar10 --what curves,confusion -o $(FIGURES)/run.png
	$(MNV3) compare mnv3_large.ra_in1k mnv3_large.ra4_e3600_r224_in1k mnv3_large.miil_in21k_ft_in1k mnv3_large.tv_in1k mnv3_large_075_tf mnv3_large_minimal_tf mnv3_small.lamb_in1k mnv3_small_075 mnv3_small_050 mnv3_small_minimal_tf torchvision/mobilenet_v2 torchvision/mnasnet1_0 torchvision/shufflenet_v2_x1_0 torchvision/efficientnet_b0 torchvision/resnet18 --no-latency -o $(FIGURES)/compare.png
	$(MNV3) compare mnv3_small_cifar.cifar10 mnv3_large_cifar.cifar10 benchmarks/cifar10_published.json --no-latency -o $(FIGURES)/cifar10.png
	$(MNV3) compare benchmarks/ablation.json -o $(FIGURES)/ablation.png

tables:
	$(PYTHON) benchmarks/tables.py

measured-files:
	$(PYTHON) benchmarks/speed.py --files $(FILES) --pictures $(PICTURES) --prepare

measure:
	$(PYTHON) benchmarks/speed.py --files $(FILES) --pictures $(PICTURES)
	$(PYTHON) benchmarks/latency.py --json benchmarks/results/eager.json

.PHONY: figures tables measured-files measure
