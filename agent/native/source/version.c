/* Of these kernels: what they are called, what they take, and the bits that they give. agent/native/library.py wants this one. */
int bramble_version(void);

int bramble_version(void)
{
    return 1;
}
