"""Models of nnU-Net v2, read as data: a results folder becomes plans and weights of ours."""
