"""5,000 images of Fashion-MNIST, made by bench/make_fashion_mnist_mini.py; see LICENSE here."""
