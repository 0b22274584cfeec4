#ifdef NAME_MAIN
#include <stdio.h>

int main(void)
{
    static float image[NAME_CHANNELS * NAME_HEIGHT * NAME_WIDTH], logits[NAME_CLASSES];
    static float arena[NAME_ARENA_BYTES / sizeof(float)];
    while (fread(image, sizeof image, 1, stdin) == 1) {
        if (name_run(image, logits, arena))
            return 1;
        for (int i = 0; i < NAME_CLASSES; i++)
            printf("%.9g%c", (double)logits[i], i + 1 < NAME_CLASSES ? ' ' : '\n');
    }
    return 0;
}
#endif
