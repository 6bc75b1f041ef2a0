# Pictures of ./dev quality: gnuplot -e "stem='x'" quality.gnuplot reads x.kl.dat, x.accuracy.dat and x.budget.dat, and draws x-kl.svg,
# x-accuracy.svg and x-budget.svg. A block of the first two is a policy: its name, then lines of share in percent, mean and standard
# error; of the last its name and share as a comment, then a line of heads for each layer, in shares of the rows. Colours and greys are such
# that the pictures can be read on white and on black; their own ground is transparent.

set border 3 lc rgb "#808890"
set tics nomirror textcolor rgb "#808890"
set grid lc rgb "#808890" lw 0.4 dt 3
set key outside right center textcolor rgb "#808890" samplen 2 spacing 1.2 maxcols 1

array colours[8] = ["#1f8fd0", "#e07b1f", "#2fa35a", "#c75fb5", "#d9493f", "#9a8a2a", "#7a6fd8", "#3fa9a0"]
array points[6] = [7, 5, 9, 13, 11, 15]
unmarked = "sub(\"^# \", \"\")"
name(file, i) = system(sprintf("awk -v want=%d 'BEGIN { start = 1 } /^$/ { start = 1; next } start { ++seen; start = 0; if (seen == want) { %s; print } }' '%s'", i + 1, unmarked, file))
blocks(file) = int(system("awk 'BEGIN { start = 1 } /^$/ { start = 1; next } start { ++seen; start = 0 } END { print seen }' '".file."'"))
colour(i) = colours[i % 8 + 1]
height(file) = blocks(file) < 24 ? 520 : 160 + 20 * blocks(file) # room for all names

set logscale x 2
set xrange [*:110]
set xtics (5, 10, 20, 50, 100)
set xlabel "cache kept, %" textcolor rgb "#808890"

if (system("test -s '".stem.".kl.dat' && echo 1") eq "1") {
    file = stem.".kl.dat"
    set terminal svg size 1080,height(file) font "sans-serif,13" noenhanced dynamic
    set output stem."-kl.svg"
    set title "Running text: KL of the next tokens, against the full cache" textcolor rgb "#808890"
    set ylabel "mean KL, nats a token" textcolor rgb "#808890"
    set logscale y 10
    plot for [i = 0:blocks(file) - 1] file index i every ::1 using 1:2:3 with yerrorlines lw 2 pt points[i / 8 % 6 + 1] ps 0.6 dt i / 8 + 1 lc rgb colour(i) title name(file, i)
    unset logscale y
}

if (system("test -s '".stem.".accuracy.dat' && echo 1") eq "1") {
    file = stem.".accuracy.dat"
    set terminal svg size 1080,height(file) font "sans-serif,13" noenhanced dynamic
    set output stem."-accuracy.svg"
    set title "Needles of numbers, question unseen: answers that stay right" textcolor rgb "#808890"
    set ylabel "share, mean over the tasks" textcolor rgb "#808890"
    set yrange [0:1]
    plot for [i = 0:blocks(file) - 1] file index i every ::1 using 1:2:3 with yerrorlines lw 2 pt points[i / 8 % 6 + 1] ps 0.6 dt i / 8 + 1 lc rgb colour(i) title name(file, i)
    unset yrange
}

if (system("test -s '".stem.".budget.dat' && echo 1") eq "1") {
    file = stem.".budget.dat"
    pictures = blocks(file)
    unset logscale x
    unset grid
    unset key
    set xrange [*:*]
    set autoscale fix
    set xtics autofreq
    set terminal svg size 820,130 + 190 * pictures font "sans-serif,13" noenhanced dynamic
    set output stem."-budget.svg"
    set palette defined (0 "#ffffff", 0.5 "#1f8fd0", 1 "#102040")
    set cbtics textcolor rgb "#808890"
    set cbrange [0:*]
    set xlabel "layer" textcolor rgb "#808890"
    set ylabel "KV head" textcolor rgb "#808890"
    set ytics 1
    set multiplot layout pictures, 1
    do for [i = 0:pictures - 1] {
        set title "share of each head's rows that ".name(file, i)." keeps" textcolor rgb "#808890"
        plot file index i matrix using 2:1:3 with image
    }
    unset multiplot
}
