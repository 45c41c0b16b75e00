"""What is installed here: versions of coma and its libraries, commands that fit the installation, CUDA's parts.

versions        versions of coma and its libraries, also in a checkout that is not installed
installation    commands that fit how coma was installed, and whether another package got in its way
cuda            whether torch, DALI and the driver are made for CUDAs that go together
"""
