"""Residual k-means: coarse before fine, no collisions as long as there is room, the same codes for
the same seed."""

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.items.quantizer import codebook_use, residual_kmeans


def test_first_level_finds_the_clusters_and_the_second_what_is_left():
    """Two clusters far apart, of two near points each. Level 1 splits the clusters, level 2 the
    points."""
    points = np.array([[0, 0], [0, 1], [100, 0], [100, 1]], dtype=float)
    codes = residual_kmeans(points, num_levels=2, codebook_size=2, seed=0)
    first = codes[:, 0].tolist()
    assert first[0] == first[1] != first[2] == first[3]
    assert codes[0, 1] != codes[1, 1]
    assert codes[2, 1] != codes[3, 1]


def test_collisions_are_reassigned_if_the_last_codebook_has_room():
    """No k-means can tell eight equal points apart, but 2 levels of 8 codes have room for them."""
    codes = residual_kmeans(np.ones((8, 3)), num_levels=2, codebook_size=8, seed=0)
    assert len(np.unique(codes, axis=0)) == 8


def test_a_full_codebook_leaves_collisions_for_the_extra_token():
    codes = residual_kmeans(np.ones((5, 3)), num_levels=1, codebook_size=2, seed=0)
    assert codes.max() <= 1
    assert len(np.unique(codes, axis=0)) == 2


def test_deterministic_and_within_the_codebook():
    points = np.random.default_rng(0).normal(size=(200, 8))
    codes = residual_kmeans(points, 3, 16, seed=1)
    assert np.array_equal(codes, residual_kmeans(points, 3, 16, seed=1))
    assert codes.shape == (200, 3)
    assert codes.min() >= 0
    assert codes.max() < 16
    assert len(np.unique(codes, axis=0)) == 200


def test_codebook_use():
    assert codebook_use(np.array([[0, 1], [0, 2]]), 4) == [0.25, 0.5]


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.array([[0.0, np.nan]])])
def test_bad_embeddings(points):
    with pytest.raises(InputError, match="item embeddings"):
        residual_kmeans(points, 2, 4, 0)
