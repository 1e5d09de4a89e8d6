"""The models that AMEIR is compared with (Appendix C): one file each."""
