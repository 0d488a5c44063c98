"""CelebA's aligned pictures with face-parsing label maps computed beforehand."""
