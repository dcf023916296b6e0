"""What models compute: families and their products, over whatever attention they are given; caches are the runner's."""
